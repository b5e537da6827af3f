"""A benchmark from what is asked for to its summary: arms take turns, in an order drawn for each round."""

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foveate.bench.arm import Arm, parse_arms
from foveate.bench.lines import add_line, foreign, read_lines
from foveate.bench.machine import commit, versions
from foveate.bench.serve.load import Load
from foveate.bench.serve.server import TIMEOUT, Answered, Server
from foveate.bench.serve.summary import summarise
from foveate.errors import InvalidOption

METHODS, BUDGETS = "rrqr,spare,resprune", "64"
IMAGES, QUESTIONS, CONCURRENCY, NEW_TOKENS, ROUNDS = 8, 1, 4, 16, 6
SIZE = (336, 336)
STOCK = "all tokens"
FILE = "serve.jsonl"

Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class Round:
    """All requests of one arm in one round.

    Attributes:
        arm: its label.
        round: all arms have one in each; 0 is the warm-up, which is not counted.
        seconds: from the first request to the last answer.
        answers: one per request.
        counted: what vLLM's counters rose by.
        commit: of the checkout that asked, or None.
    """

    arm: str
    round: int
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
        rounds: besides the warm-up.
    """

    arms: dict[str, dict[str, Any] | None]
    load: Load
    rounds: int

    @classmethod
    def make(
        cls,
        *,
        methods: str = METHODS,
        keep: str = BUDGETS,
        images: int = IMAGES,
        questions: int = QUESTIONS,
        concurrency: int = CONCURRENCY,
        new_tokens: int = NEW_TOKENS,
        rounds: int = ROUNDS,
        size: tuple[int, int] = SIZE,
    ) -> "Benchmark":
        """Read the options.

        Raises:
            InvalidOption, InvalidBudget: one of them is not as it should be.
        """
        counts = {"images": images, "questions": questions, "concurrency": concurrency, "rounds": rounds}
        for name, value in {**counts, "new tokens": new_tokens, "width": size[0], "height": size[1]}.items():
            if value < 1:
                raise InvalidOption(f"{name} {value}: allowed is 1 or more")
        arms = {arm.label: _options(arm) for arm in parse_arms(methods, keep)}
        return cls({STOCK: None, **arms}, Load(images, questions, concurrency, new_tokens, size), rounds)

    @property
    def requests(self) -> int:
        """Of all arms and rounds, the warm-up included."""
        return len(self.arms) * (self.rounds + 1) * self.load.requests

    def measure(
        self,
        url: str,
        folder: Path | None,
        *,
        timeout: float = TIMEOUT,
        progress: Progress = lambda arm, requests: None,
    ) -> dict[str, Any]:
        """Send what is missing, and summarise all of it.

        Args:
            url: of a running server.
            folder: where results are kept, and found again; None keeps none.
            timeout: seconds for a request.
            progress: told each arm, and the requests that were answered.

        Raises:
            InvalidOption, InvalidInputs: no such server, or it refuses; results of another load or server.
        """
        server = Server.find(url, timeout)
        settings = {
            "model": server.model,
            "vllm": server.version,
            "load": {**asdict(self.load), "size": list(self.load.size)},
            "versions": versions(),
        }
        path = None if folder is None else folder / FILE
        known = {(one.arm, one.round): one for one in ([] if path is None else _read(path, settings))}
        for number in range(self.rounds + 1):
            for label in random.Random(number).sample([*self.arms], len(self.arms)):
                if (label, number) not in known:
                    known[label, number] = self._round(server, label, number)
                    if path is not None:
                        add_line(path, asdict(known[label, number]))
                progress(label, self.load.requests)
        counted = {label: [known[label, n] for n in range(1, self.rounds + 1)] for label in self.arms}
        return summarise(counted, self.arms, settings)

    def _round(self, server: Server, label: str, number: int) -> Round:
        asked = list(self.load.round(number))
        before = server.counters()
        answers, seconds = server.answers(asked, self.arms[label], self.load.new_tokens, self.load.concurrency)
        counted = {name: value - before[name] for name, value in server.counters().items()}
        return Round(label, number, seconds, answers, counted, commit())


def _options(arm: Arm) -> dict[str, Any]:
    if arm.keeps_all:
        raise InvalidOption(f"methods {arm.name!r}: no pruning is always measured; allowed is to leave none out")
    return {"method": arm.name, "keep": arm.budget.keep}


def _read(path: Path, settings: dict[str, Any]) -> list[Round]:
    try:
        return [
            Round(**{**entry, "answers": [Answered(**answer) for answer in entry["answers"]]})
            for entry in read_lines(path, settings)
        ]
    except (TypeError, KeyError) as error:
        raise foreign(path) from error
