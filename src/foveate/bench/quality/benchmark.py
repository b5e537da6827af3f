"""A benchmark from what is asked for to its summary: checked first, then run, then counted."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.bench.arm import parse_budgets
from foveate.bench.machine import code, fingerprint, machine, versions
from foveate.bench.quality.items import SPLITS, Item, mini_items, own_items
from foveate.bench.quality.measured import Measured
from foveate.bench.quality.plan import Plan
from foveate.bench.quality.running import run, settler
from foveate.bench.quality.store import Store
from foveate.bench.quality.suites import Suite, arms_of, suites_of
from foveate.bench.quality.summary import summarise
from foveate.budget import Budget
from foveate.errors import InvalidOption
from foveate.methods.spec import split_methods
from foveate.text.clip import clip_for
from foveate.text.nouns import nouns_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class Benchmark:
    """What is asked for, known to be sound before any model is loaded.

    Attributes:
        suites: by name.
        budgets: as asked for.
        items: the questions.
        data: where they are from, in words, with a fingerprint where they are a user's.
        split: of mini's scenes; ``own`` for a user's data.
    """

    suites: dict[str, Suite]
    budgets: list[Budget]
    items: list[Item]
    data: str
    split: str

    @classmethod
    def make(
        cls,
        *,
        suite: str,
        methods: str | None,
        keep: str,
        questions: int,
        split: str | None = None,
        data: Path | None = None,
        last_word: bool = False,
    ) -> "Benchmark":
        """Read the options.

        Args:
            suite: names such as ``default,alpha``, or ``all``.
            methods: what the default suite compares, beside the controls; None takes the table of methods.
            keep: budgets such as ``192,64``.
            questions: how many at most.
            split: of mini's scenes; None is ``test``.
            data: a user's JSONL file, in place of mini's scenes.
            last_word: whether the last word of an answer to the user's data may match alone.

        Raises:
            InvalidOption, InvalidBudget, InvalidInputs: one of them is not as it should be.
        """
        if data is not None and split is not None:
            raise InvalidOption(f"split={split!r} with data of your own: allowed is one of the two")
        suites = suites_of(suite, split_methods(methods) if methods is not None else ())
        budgets = parse_budgets(keep)
        arms_of(list(suites.values()), budgets)  # no suite with a method that there is not
        if data is None:
            split = split or next(iter(SPLITS))
            items = mini_items(questions, split)
            return cls(suites, budgets, items, f"{split} scenes of mini", split)
        items = own_items(data, questions, last_word)
        digest = hashlib.sha256(data.read_bytes()).hexdigest()[:12]
        judged = ", judged by the last word too" if last_word else ""
        return cls(suites, budgets, items, f"{data.name} ({digest}{judged})", "own")

    def plan(self, model: "PreTrainedModel", processor: Any, clip: str | None = None) -> Plan:
        """The arms, for this model.

        Raises:
            InvalidOption, MissingSignal: as `Plan.make`.
        """
        return Plan.make(self.suites, self.budgets, settler(model, processor, clip))

    def store(self, model: "PreTrainedModel", folder: Path | None, clip: Any = None) -> Store:
        """Where answers are kept, with those that are known; in memory without a folder.

        Raises:
            InvalidInputs: the folder cannot be written, or has results of another model, split, data or version.
        """
        pair = clip_for(model, clip)
        settings = {
            "data": self.data,
            "split": self.split,
            "model": fingerprint(model),
            "clip": None if pair is None else fingerprint(pair),
            "versions": versions(),
            "code": code(),
            "tagger": nouns_of("dog").tagger,
            "device": str(model.device),
        }
        return Store.open(folder, settings)

    def measure(
        self,
        plan: Plan,
        store: Store,
        model: "PreTrainedModel",
        processor: Any,
        *,
        name: str,
        clip: str | None = None,
        progress: Progress = lambda arm, answers: None,
    ) -> dict[str, Any]:
        """Run what is missing, and summarise all of it.

        Args:
            plan: from `plan`.
            store: from `store`.
            model: the same.
            processor: its processor.
            name: of the model, for the reader.
            clip: as for `plan`.
            progress: is told of every batch of answers.

        Raises:
            InvalidBudget: an arm handed on another number of tokens than asked for.
            InvalidInputs: an answer cannot be kept.
        """
        run(model, processor, plan.arms, self.items, store, clip, progress)
        context = {
            "model": name,
            "machine": machine(model.device),
            **{key: store.settings[key] for key in ("data", "split", "versions", "tagger")},
        }
        return summarise(Measured.of(plan, self.items, store), context)
