"""A benchmark from what is asked for to its summary: checked first, then run, then counted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from foveate.bench.defaults import Speed
from foveate.bench.machine import code, machine, versions
from foveate.bench.speed.clock import Clock
from foveate.bench.speed.contestants import Contestant, contestants
from foveate.bench.speed.memory import how
from foveate.bench.speed.running import Effort, Progress, run
from foveate.bench.speed.store import Store
from foveate.bench.speed.subject import Subject, of_checkpoint, of_preset
from foveate.bench.speed.summary import summarise
from foveate.errors import InvalidOption

# Of the benchmark, the files that a time depends on; the others only plan, count and print.
DECIDING = (
    "arm.py",
    "checkpoint.py",
    *(
        f"speed/{name}.py"
        for name in (
            "clock",
            "contestants",
            "memory",
            "passing",
            "presets",
            "prompts",
            "queue",
            "running",
            "stand_in",
            "subject",
        )
    ),
)


@dataclass(frozen=True)
class Benchmark:
    """What is asked for, known to be sound before any model is loaded.

    Attributes:
        contestants: stock, our path with all tokens, then every method at every budget.
        batches: rows.
        sizes: visual tokens per image, or None.
        effort: how much is run.
    """

    contestants: list[Contestant]
    batches: list[int]
    sizes: list[int] | None
    effort: Effort

    @classmethod
    def make(
        cls,
        *,
        methods: str,
        keep: str,
        batch: str = Speed.BATCHES,
        sizes: str | None = None,
        repeats: int = Speed.REPEATS,
        warmup: int = Speed.WARMUP,
        new_tokens: int = Speed.NEW_TOKENS,
    ) -> "Benchmark":
        """Read the options.

        Args:
            methods: such as ``spare,fastv:layer=3``.
            keep: budgets such as ``192,64``.
            batch: rows, such as ``1,4``; ``auto`` is 1, 4 and 16 on a GPU, and 1 on a CPU.
            sizes: visual tokens per image, such as ``144,576``; None is the preset's own.
            repeats: rounds, 1 or more.
            warmup: 0 or more.
            new_tokens: 1 or more.

        Raises:
            InvalidOption, InvalidBudget: one of them is not as it should be.
        """
        for name, value, least in (("repeats", repeats, 1), ("warmup", warmup, 0), ("new tokens", new_tokens, 1)):
            if value < least:
                raise InvalidOption(f"{name} {value}: allowed is {least} or more")
        asked = None if sizes is None else _numbers("sizes", sizes)
        if batch == Speed.BATCHES:
            batch = Speed.BATCHES_OF["cuda" if torch.cuda.is_available() else "cpu"]
        return cls(
            contestants(methods, keep), _numbers("batch", batch), asked, Effort(repeats, warmup, new_tokens)
        )

    def subject(
        self,
        *,
        preset: str | None,
        model: str | None,
        text: int | None = None,
        dtype: str | None = None,
        attention: str = "sdpa",
        clip: str | None = None,
    ) -> Subject:
        """Build or load the model: a preset, or a checkpoint.

        Raises:
            InvalidOption, InvalidInputs, UnsupportedModel: as `of_preset` and `of_checkpoint`; both are given.
        """
        if preset is None:
            return of_checkpoint(model or "mini", self.sizes, text, dtype, attention, clip)
        if model is not None or clip is not None:
            given = f"model={model!r}" if model is not None else f"clip={clip!r}"
            raise InvalidOption(f"preset={preset!r} with {given}: allowed is one of the two")
        return of_preset(preset, self.sizes, text, dtype, attention)

    def distinct(self, subject: Subject) -> "Benchmark":
        """The same without budgets that come to the same counts as an earlier one, at every size."""
        totals = [subject.visual_tokens(subject.inputs(size, 1)) for size in subject.sizes]
        unique: dict[object, Contestant] = {}
        for one in self.contestants:
            counts = None if one.arm is None else tuple(map(one.arm.budget.count, totals))
            unique.setdefault((one.keep is None, one.arm and one.arm.method, counts), one)
        return replace(self, contestants=list(unique.values()))

    def store(self, subject: Subject, folder: Path | None) -> Store:
        """Where results are kept, with those that are known; in memory without a folder.

        Raises:
            InvalidInputs: the folder cannot be written, or has results of another model, machine or version.
        """
        model = subject.model
        settings = {
            "model": subject.identity,
            "clip": subject.clip,
            "attention": subject.attention,
            "dtype": str(model.dtype).removeprefix("torch."),
            "machine": machine(model.device),
            "versions": versions(),
            "code": code(DECIDING),
            "new_tokens": self.effort.new_tokens,
            "warmup": self.effort.warmup,
        }
        return Store.open(folder, settings)

    def passes(self, subject: Subject) -> int:
        """How many there will be in all."""
        cases = len(self.batches) * len(subject.sizes)
        return cases * self.effort.passes(len(self.contestants))

    def measure(
        self,
        subject: Subject,
        store: Store,
        *,
        clock: Clock | None = None,
        progress: Progress = lambda label, passes: None,
    ) -> dict[str, Any]:
        """Run what is missing, and summarise all of it.

        Raises:
            InvalidBudget, MissingSignal, UnsupportedModel: a contestant cannot run on this model.
            InvalidInputs: a result cannot be kept, or a case does not fit into memory.
        """
        cases = run(
            subject,
            self.contestants,
            self.batches,
            store,
            self.effort,
            clock=clock,
            progress=progress,
        )
        context = {
            **store.settings,
            "model": subject.name,
            "identity": subject.identity,
            "memory": how(subject.model.device),
            "weights": subject.weights,
            "question": subject.question,
        }
        return summarise(self.contestants, list(dict.fromkeys(cases)), store, context)


def _numbers(name: str, text: str) -> list[int]:
    parts: Sequence[str] = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InvalidOption(f"{name} {text!r}: allowed are numbers such as 1 or 1,4")
    return list(dict.fromkeys(map(int, parts)))
