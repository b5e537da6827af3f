"""A benchmark from what is asked for to its summary: arms take turns, in an order drawn for each round."""

import random
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foveate.bench.arm import Arm, parse_arms
from foveate.bench.defaults import Serve
from foveate.bench.lines import add_line, read_lines
from foveate.bench.machine import commit, versions
from foveate.bench.serve.load import Load
from foveate.bench.serve.server import Answered, Server
from foveate.bench.serve.summary import summarise
from foveate.errors import InvalidOption

STOCK = "all tokens"

Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class Round:
    """All requests of one arm in one round.

    Attributes:
        arm: its label.
        concurrency: requests that were under way at any time.
        round: all arms have one in each; 0 is the warm-up, which is neither counted nor kept.
        seed: of its pictures, which no other round has: a server that has seen them finds them in its caches.
        seconds: from the first request to the last answer.
        answers: one per request.
        counted: what vLLM's counters rose by.
        commit: of the checkout that asked, or None.
    """

    arm: str
    concurrency: int
    round: int
    seed: int
    seconds: float
    answers: list[Answered]
    counted: dict[str, int]
    commit: str | None


@dataclass(frozen=True)
class Benchmark:
    """What is asked for, known to be sound before any request is sent.

    Attributes:
        arms: by label, what requests ask for; None is no pruning.
        load: of every round.
        concurrency: how many requests are under way at any time, in rounds of their own.
        rounds: of each, besides the warm-up.
    """

    arms: dict[str, dict[str, Any] | None]
    load: Load
    concurrency: tuple[int, ...]
    rounds: int

    @classmethod
    def make(
        cls,
        *,
        methods: str = Serve.METHODS,
        keep: str = Serve.BUDGETS,
        images: int = Serve.IMAGES,
        questions: int = Serve.QUESTIONS,
        concurrency: str = Serve.CONCURRENCY,
        new_tokens: int = Serve.NEW_TOKENS,
        rounds: int = Serve.ROUNDS,
        size: tuple[int, int] = Serve.SIZE,
    ) -> "Benchmark":
        """Read the options.

        Raises:
            InvalidOption, InvalidBudget: one of them is not as it should be.
        """
        counts = {"images": images, "questions": questions, "rounds": rounds, "new tokens": new_tokens}
        for name, value in {**counts, "width": size[0], "height": size[1]}.items():
            if value < 1:
                raise InvalidOption(f"{name} {value}: allowed is 1 or more")
        arms = {arm.label: _options(arm) for arm in parse_arms(methods, keep)}
        load = Load(images, questions, new_tokens, size)
        return cls({STOCK: None, **arms}, load, _levels(concurrency, load.requests), rounds)

    @property
    def requests(self) -> int:
        """Of all arms and rounds, the warm-up included."""
        return len(self.arms) * (self.rounds * len(self.concurrency) + 1) * self.load.requests

    def measure(
        self,
        server: Server,
        folder: Path | None,
        *,
        about: str | None = None,
        progress: Progress = lambda arm, requests: None,
    ) -> dict[str, Any]:
        """Send what is missing, and summarise all of it.

        Args:
            server: a running one.
            folder: where results are kept, and found again; None keeps none.
            about: what started the server, and on what, in words.
            progress: told each arm, and the requests that were answered.

        Raises:
            InvalidInputs: the server refuses, or is gone; results of another load or server.
        """
        settings = {
            "url": server.url,
            "about": about,
            "model": server.model,
            "vllm": server.version,
            "load": {**asdict(self.load), "size": list(self.load.size)},
            "versions": versions(),
        }
        path = None if folder is None else folder / Serve.FILE
        known = {
            (one.concurrency, one.round, one.arm): one for one in ([] if path is None else _read(path, settings))
        }
        turns = [(level, number) for number in range(1, self.rounds + 1) for level in self.concurrency]
        missing = [turn for turn in turns if not self._whole(known, turn)]
        if missing:  # the server may have been started since
            missing.insert(0, (max(self.concurrency), 0))
        progress(STOCK, (1 + len(turns) - len(missing)) * len(self.arms) * self.load.requests)
        for turn in missing:
            for one in self._turn(server, *turn):
                known[(*turn, one.arm)] = one
                if path is not None and one.round:
                    add_line(path, asdict(one))
                progress(one.arm, self.load.requests)
        counted = {
            (level, label): [known[level, number, label] for number in range(1, self.rounds + 1)]
            for level in self.concurrency
            for label in self.arms
        }
        return summarise(counted, self.arms, settings)

    def _whole(self, known: Mapping[tuple[int, int, str], Round], turn: tuple[int, int]) -> bool:
        """Whether all arms were sent the same in a round; one that was cut is sent again, of other pictures."""
        found = [known.get((*turn, label)) for label in self.arms]
        return all(found) and len({one.seed for one in found if one}) == 1

    def _turn(self, server: Server, concurrency: int, number: int) -> Iterator[Round]:
        """A round of each arm, in an order drawn for it."""
        seed = secrets.randbits(32)
        asked = list(self.load.round(seed))
        for label in random.Random(f"{concurrency} {number}").sample([*self.arms], len(self.arms)):
            before = server.counters()
            answers, seconds = server.answers(asked, self.arms[label], self.load.new_tokens, concurrency)
            counted = {name: value - before[name] for name, value in server.counters().items()}
            yield Round(label, concurrency, number, seed, seconds, answers, counted, commit())


def _levels(text: str, requests: int) -> tuple[int, ...]:
    try:
        levels = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError as error:
        raise InvalidOption(f"concurrency {text!r}: allowed are numbers such as 1,4") from error
    for level in levels:
        if not 1 <= level <= requests:
            raise InvalidOption(
                f"concurrency {level}: allowed is 1 to {requests}, the requests of a round (images x questions)"
            )
    return levels


def _options(arm: Arm) -> dict[str, Any]:
    if arm.keeps_all:
        raise InvalidOption(f"methods {arm.name!r}: no pruning is always measured; allowed is to leave none out")
    return {"method": arm.name, "keep": arm.budget.keep}


def _read(path: Path, settings: dict[str, Any]) -> list[Round]:
    def made(entry: dict[str, Any]) -> Round:
        return Round(**{**entry, "answers": [Answered(**answer) for answer in entry["answers"]]})

    return read_lines(path, settings, made)
