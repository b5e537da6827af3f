"""Does reconstruction error predict accuracy? Spearman's correlation of energy kept and right answers, five ways.

Positive means that arms, or questions, whose tokens span more of the image's energy are answered better.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from foveate.bench.quality.measured import Measured, Row
from foveate.bench.quality.suites import Suite
from foveate.bench.statistics import (
    Counts,
    Estimate,
    Flags,
    correlation,
    moments,
    quotient,
    rank_correlation,
    ranks,
    ranks_in_rows,
)

Keep = int | float | None  # a budget; None stands for all of them
Sums = tuple[Flags, Flags, Flags]  # of products about the means: of both sides, of the first, of the second


@dataclass(frozen=True)
class Correlations:
    """Estimates, None where one side does not vary.

    Attributes:
        over_budgets: by method: mean energy and accuracy, over its budgets.
        across_methods: by budget: mean energy and accuracy, over methods.
        per_question: by method and budget: over questions, within the arm.
        per_question_pooled: by budget: the same over all arms, with each arm's own level removed.
        within_question: by budget: over methods, within one question, so that neither the question's
            difficulty nor the budget counts.
        beyond_method: by budget: the same with each method's own level removed too, so that only what differs
            from image to image counts.
        points: by method and budget: mean energy kept and accuracy.
    """

    over_budgets: dict[str, Estimate | None]
    across_methods: dict[Keep, Estimate | None]
    per_question: dict[tuple[str, Keep], Estimate | None]
    per_question_pooled: dict[Keep, Estimate | None]
    within_question: dict[Keep, Estimate | None]
    beyond_method: dict[Keep, Estimate | None]
    points: dict[tuple[str, Keep], tuple[float, float]]


def correlate(measured: Measured, suite: Suite, counts: Counts) -> Correlations:
    """All of them, over the methods of a suite."""
    rows = {(v.label, keep): measured.row(v, b) for v in suite.variants for keep, b in measured.budgets.items()}
    labels = [variant.label for variant in suite.variants]
    keeps = list(measured.budgets)
    at = {keep: [rows[label, keep] for label in labels] for keep in keeps}
    draws = np.concatenate([np.ones((1, counts.shape[1])), counts])  # the sample itself, then the resamples
    return Correlations(
        over_budgets={label: _of_means([rows[label, keep] for keep in keeps], draws) for label in labels},
        across_methods={keep: _of_means(at[keep], draws) for keep in keeps},
        per_question={key: rank_correlation(row.kept, row.right, counts) for key, row in rows.items()},
        per_question_pooled=_by_budget(at, draws, _within_arms),
        within_question=_by_budget(at, draws, _within_questions),
        beyond_method=_by_budget(at, draws, _beyond_methods),
        points={key: (float(row.kept.mean()), float(row.right.mean())) for key, row in rows.items()},
    )


def _of_means(rows: Sequence[Row], draws: Counts) -> Estimate | None:
    """Over rows: mean energy and accuracy, both taken afresh in every resample."""
    kept, right = (
        ranks_in_rows(np.stack([draws @ values for values in side], axis=1).round(9))
        for side in ([row.kept for row in rows], [row.right for row in rows])
    )
    return _estimate(moments(kept, right, np.ones_like(kept)), draws.shape[1])


def _by_budget(
    at: dict[int | float, list[Row]], draws: Counts, summed: Callable[[Sequence[Row], Counts], Sums]
) -> dict[Keep, Estimate | None]:
    """At each budget, and over all of them together."""
    sums = {keep: summed(rows, draws) for keep, rows in at.items()}
    single: dict[Keep, Estimate | None] = {keep: _estimate(found, draws.shape[1]) for keep, found in sums.items()}
    return {**single, None: _estimate(_total(list(sums.values())), draws.shape[1])}


def _within_arms(rows: Sequence[Row], draws: Counts) -> Sums:
    """Over questions: ranks about each row's own means, added up over rows."""
    return _total([moments(ranks(row.kept, draws), ranks(row.right, draws), draws) for row in rows])


def _within_questions(rows: Sequence[Row], draws: Counts) -> Sums:
    """Over rows: ranks of the energies and right answers about each question's own means, over questions."""
    x, y = _about_questions(rows)
    first, second, third = (draws @ (a * b).sum(axis=1) for a, b in ((x, y), (x, x), (y, y)))
    return first, second, third


def _beyond_methods(rows: Sequence[Row], draws: Counts) -> Sums:
    """The same about each question's and each row's own means."""
    x, y = _about_questions(rows)
    n = draws.sum(axis=1)
    levels = {id(side): draws @ side for side in (x, y)}  # [B, rows]: sums over questions
    first, second, third = (
        draws @ (a * b).sum(axis=1) - (levels[id(a)] * levels[id(b)]).sum(axis=1) / n
        for a, b in ((x, y), (x, x), (y, y))
    )
    return first, second, third


def _about_questions(rows: Sequence[Row]) -> tuple[Flags, Flags]:
    """``[n, rows]`` each: ranks of the energies, and right answers, about the question's own mean."""
    x = ranks_in_rows(np.stack([row.kept for row in rows], axis=1))
    y = np.stack([row.right for row in rows], axis=1)
    return x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)


def _total(parts: Sequence[Sums]) -> Sums:
    first, second, third = (np.sum(part, axis=0) for part in zip(*parts, strict=True))
    return first, second, third


def _estimate(sums: Sums, questions: int) -> Estimate | None:
    found = quotient(*sums)
    return correlation(found[:1], found[1:], questions)
