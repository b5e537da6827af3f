"""From batches of answers to arrays over questions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foveate.bench.arm import all_tokens
from foveate.bench.quality.items import Item
from foveate.bench.quality.plan import Plan
from foveate.bench.quality.store import Batch, Key, Store
from foveate.bench.quality.suites import RANDOM, Variant
from foveate.bench.statistics import Flags
from foveate.budget import Budget


@dataclass(frozen=True, eq=False)
class Row:
    """A variant at one budget.

    Attributes:
        right: ``[n]``, 1 where a question is answered rightly; the mean over seeds where there are several.
        seeds: ``[s, n]``, each seed's own; one seed where the method has none.
        kept: ``[n]``, share of the features' energy that the tokens handed on span; mean over seeds.
        counts: ``[n]``, visual tokens that went to the language model.
    """

    right: Flags
    seeds: Flags
    kept: Flags
    counts: Flags

    @property
    def tokens(self) -> float:
        """Visual tokens that went to the language model, mean over questions."""
        return float(self.counts.mean())


@dataclass(frozen=True, eq=False)
class Measured:
    """All rows of a run, over the same questions in the same order.

    Attributes:
        plan: what was run.
        skills: ``[n]``, the skill of each question.
        everything: the row of all tokens.
        budgets: by the tokens that were really kept, those of the plan that came to different counts.
    """

    plan: Plan
    skills: list[str]
    everything: Row
    budgets: dict[int | float, Budget]
    _arms: dict[Key, Row]

    @classmethod
    def of(cls, plan: Plan, items: Sequence[Item], store: Store) -> "Measured":
        """The outcomes of the plan's arms on these questions, from a store that has them all."""
        by_arm: dict[Key, list[Batch]] = {}
        for batch in store.batches:
            by_arm.setdefault(batch.key, []).append(batch)
        arms = {arm.key: _row(by_arm[arm.key], [item.id for item in items]) for arm in plan.arms}
        skills = [item.skill for item in items]
        return cls(plan, skills, arms[all_tokens().key], _by_tokens(plan, arms), arms)

    def row(self, variant: Variant, budget: Budget) -> Row:
        """A variant at a budget, its seeds averaged."""
        rows = [self._arms[key] for key in self.plan.keys(variant, budget)]
        return Row(
            right=np.mean([row.right for row in rows], axis=0),
            seeds=np.concatenate([row.seeds for row in rows]),
            kept=np.mean([row.kept for row in rows], axis=0),
            counts=np.mean([row.counts for row in rows], axis=0),
        )

    def random(self, budget: Budget) -> Row:
        """Random tokens, which are always there."""
        return self.row(Variant(RANDOM, RANDOM), budget)


def _by_tokens(plan: Plan, arms: dict[Key, Row]) -> dict[int | float, Budget]:
    """The budgets, once where two came to the same counts, under the mean of what was kept.

    Where two that differ have the same mean, each stands under what was asked for.
    """
    distinct: dict[tuple[float, ...], Budget] = {}
    for budget in plan.budgets:
        counts = arms[plan.keys(Variant(RANDOM, RANDOM), budget)[0]].counts
        distinct.setdefault(tuple(counts), budget)
    means = [round(float(np.mean(counts)), 1) for counts in distinct]
    return {
        budget.keep if means.count(mean) > 1 else int(mean) if mean.is_integer() else mean: budget
        for mean, budget in sorted(zip(means, distinct.values(), strict=True), key=lambda pair: -pair[0])
    }


def _row(batches: Sequence[Batch], ids: Sequence[str]) -> Row:
    right: dict[str, bool] = {}
    tokens: dict[str, int] = {}
    energy: dict[str, float] = {}
    for batch in batches:
        right.update(zip(batch.questions, batch.right, strict=True))
        tokens.update(zip(batch.questions, batch.tokens, strict=True))
        energy.update(zip(batch.questions, batch.energy, strict=True))
    flags = np.array([right[id] for id in ids], dtype=np.float64)
    return Row(
        right=flags,
        seeds=flags[None],
        kept=np.array([1 - energy[id] for id in ids]),
        counts=np.array([tokens[id] for id in ids], dtype=np.float64),
    )
