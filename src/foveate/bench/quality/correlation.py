"""Does reconstruction error predict accuracy? Spearman's correlation of energy kept and right answers, four ways.

Positive means that arms, or questions, whose kept tokens span more of the image's energy are answered better.
"""

from collections.abc import Iterator, Sequence
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


@dataclass(frozen=True)
class Correlations:
    """Estimates, None where one side does not vary.

    Attributes:
        over_budgets: by method: mean energy and accuracy, over its budgets.
        across_methods: by budget: mean energy and accuracy, over methods.
        per_question: by method and budget: over questions, within the arm.
        per_question_pooled: the same over all arms, with each arm's own level removed; by budget, and over all
            of them (None as the key).
        within_question: over methods, within one question and budget, so that neither the question's difficulty
            nor the budget counts; by budget, and over all (None).
        points: by method and budget: mean energy kept and accuracy.
    """

    over_budgets: dict[str, Estimate | None]
    across_methods: dict[int | float, Estimate | None]
    per_question: dict[tuple[str, int | float], Estimate | None]
    per_question_pooled: dict[int | float | None, Estimate | None]
    within_question: dict[int | float | None, Estimate | None]
    points: dict[tuple[str, int | float], tuple[float, float]]


def correlate(measured: Measured, suite: Suite, counts: Counts) -> Correlations:
    """All of them, over the methods of a suite."""
    rows = {(v.label, b.keep): measured.row(v, b) for v in suite.variants for b in measured.plan.budgets}
    labels = [variant.label for variant in suite.variants]
    keeps = [budget.keep for budget in measured.plan.budgets]
    at = {keep: [rows[label, keep] for label in labels] for keep in keeps}
    of = {label: [rows[label, keep] for keep in keeps] for label in labels}
    cells = {keep: _cells(at[keep]) for keep in keeps}
    sums = {keep: _sums(at[keep], counts) for keep in keeps}
    once = np.ones((1, counts.shape[1]))
    sums_once = {keep: _sums(at[keep], once) for keep in keeps}
    scopes: list[int | float | None] = [*keeps, None]
    return Correlations(
        over_budgets={label: _of_means(of[label], counts) for label in labels},
        across_methods={keep: _of_means(at[keep], counts) for keep in keeps},
        per_question={key: rank_correlation(row.kept, row.right, counts) for key, row in rows.items()},
        per_question_pooled={
            scope: correlation(
                quotient(*_total([sums_once[k] for k in keeps if scope in (None, k)])),
                quotient(*_total([sums[k] for k in keeps if scope in (None, k)])),
            )
            for scope in scopes
        },
        within_question={
            scope: correlation(
                quotient(*(part.sum(axis=0, keepdims=True) for part in _joined(cells, scope))),
                quotient(*(counts @ part for part in _joined(cells, scope))),
            )
            for scope in scopes
        },
        points={key: (float(row.kept.mean()), float(row.right.mean())) for key, row in rows.items()},
    )


def _of_means(rows: Sequence[Row], counts: Counts) -> Estimate | None:
    """Over rows: mean energy and accuracy, both taken afresh in every resample."""
    if len(rows) < 3:
        return None
    once = np.ones((1, counts.shape[1]))

    def correlations(weights: Counts) -> Flags:
        kept, right = (
            ranks_in_rows(np.stack([weights @ values for values in side], axis=1).round(9))
            for side in ([row.kept for row in rows], [row.right for row in rows])
        )
        return quotient(*moments(kept, right, np.ones_like(kept)))

    return correlation(correlations(once), correlations(counts))


def _sums(rows: Sequence[Row], counts: Counts) -> tuple[Flags, Flags, Flags]:
    """Over questions, within each row, then added up: ranks about the row's own means."""
    return _total([moments(ranks(row.kept, counts), ranks(row.right, counts), counts) for row in rows])


def _total(parts: Sequence[tuple[Flags, Flags, Flags]]) -> tuple[Flags, Flags, Flags]:
    first, second, third = (np.sum(part, axis=0) for part in zip(*parts, strict=True))
    return first, second, third


def _cells(rows: Sequence[Row]) -> tuple[Flags, Flags, Flags]:
    """Per question ``[n]``: sums over methods of energy ranks and right answers about the question's means."""
    x = ranks_in_rows(np.stack([row.kept for row in rows], axis=1))
    y = np.stack([row.right for row in rows], axis=1)
    return moments(x, y, np.ones_like(x))


def _joined(cells: dict[int | float, tuple[Flags, Flags, Flags]], scope: int | float | None) -> Iterator[Flags]:
    yield from _total([cell for keep, cell in cells.items() if scope in (None, keep)])
