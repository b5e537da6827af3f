"""Intervals of 95 %: Wilson's for one accuracy; the bootstrap over questions, paired, for all that is compared.

A resample is a row of counts: how often each question was drawn. The same rows serve all arms, which is
what makes a comparison paired.
"""

import math
from dataclasses import dataclass

import numpy as np

NORMAL_95 = 1.959963984540054
STUDENT_95 = {5: 2.7764451051977987}  # by the number of seeds: few tell little of their own spread
RESAMPLES = 2000
SEED = 0
PERCENTILES = (2.5, 97.5)
VARIES = 1e-6  # sums of squares of ranks or answers under it are rounding

Flags = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Counts = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True)
class Estimate:
    """A value and its interval of 95 %, which is without bounds where none can be had."""

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies above or below 0; 0 where it includes 0, and nothing may be claimed."""
        return (self.low > 0) - (self.high < 0)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Its bounds; None where there are none."""
        return (self.low, self.high) if math.isfinite(self.low) else None


def wilson(right: Flags) -> tuple[float, float]:
    """Wilson's score interval of the share of ones in ``right [n]``, ``n >= 1``."""
    n, share, z = len(right), float(right.mean()), NORMAL_95
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def resamples(n: int, times: int = RESAMPLES) -> Counts:
    """``[times, n]``: how often each of ``n`` questions is drawn, n draws each; always the same ones."""
    draws = np.random.default_rng(SEED).multinomial(n, np.full(n, 1 / n), size=times)
    return draws.astype(np.float64)


def difference(gaps: Flags, counts: Counts) -> Estimate:
    """The mean of paired differences between -1 and 1, with its percentile interval.

    ``gaps`` are ``[n]``, or ``[s, n]`` of several seeds, which are drawn as well: each keeps the same places in
    every image, so that its luck does not average out over questions. s - 1 of s seeds are drawn, which makes
    the variance of their mean unbiased, and their deviations are stretched to Student's quantile.

    Two made-up questions, one for either side, take part in the drawing (as Bonett and Price 2012 add them
    to a Wald interval). Without them four questions that differ, all to the same side, would leave out 0;
    with them it takes six, as in the exact sign test.
    """
    resampled = (_sums(gaps, counts) + _made_up(len(counts))) / counts.sum(axis=1)
    return _estimate(float(gaps.mean()), resampled, gaps.shape[-1])


def bootstrapped(right: Flags, counts: Counts) -> tuple[float, float] | None:
    """The percentile interval of the mean of ``right [s, n]`` over seeds and questions, both drawn; in [0, 1].

    None where all answers are alike: a resample then says nothing of others.
    """
    found = _estimate(float(right.mean()), _sums(right, counts) / counts.sum(axis=1), right.shape[1])
    if found.interval is None or np.ptp(right) == 0:
        return None
    return max(0.0, found.low), min(1.0, found.high)


def ratio(above: Flags, below: Flags, counts: Counts) -> Estimate | None:
    """Mean over mean, paired, with the made-up questions of `difference`; None where the lower one is 0.

    ``above`` may be ``[s, n]``, as in `difference`.
    Resamples where it is 0 are left out.
    """
    if not below.any():
        return None
    tops, bottoms = _sums(above, counts) + _made_up(len(counts)), counts @ below
    found = np.maximum(tops[bottoms > 0], 0) / bottoms[bottoms > 0]
    return _estimate(float(above.mean() / below.mean()), found, len(below))


def rank_correlation(x: Flags, y: Flags, counts: Counts) -> Estimate | None:
    """Spearman's, of pairs ``[n]``, with ranks taken afresh in every resample; None where one is constant."""
    return correlation(spearman(x, y), spearman(x, y, counts), len(x))


def spearman(x: Flags, y: Flags, counts: Counts | None = None) -> Flags:
    """Spearman's rank correlation of ``[n]`` pairs, pair i counted ``counts[:, i]`` times: ``[B]``, or ``[1]``.

    NaN where one of the two is constant. Ties get their mean rank.
    """
    weights = np.ones((1, len(x))) if counts is None else counts
    return quotient(*moments(ranks(x, weights), ranks(y, weights), weights))


def ranks(values: Flags, counts: Counts) -> Flags:
    """``[B, n]``: the mean rank of each value where value i is there ``counts[:, i]`` times."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    sizes = np.add.reduceat(counts[:, order], starts, axis=1)
    middle = sizes.cumsum(axis=1) - sizes / 2 + 0.5
    placed: Flags = middle[:, group]
    return placed


def moments(x: Flags, y: Flags, counts: Counts) -> tuple[Flags, Flags, Flags]:
    """Sums ``[B]`` of products about the means: of x and y, of x, of y. x and y are ``[B, n]`` or ``[n]``."""
    total = counts.sum(axis=1, keepdims=True)
    dx = x - (counts * x).sum(axis=1, keepdims=True) / total
    dy = y - (counts * y).sum(axis=1, keepdims=True) / total
    return (counts * dx * dy).sum(axis=1), (counts * dx * dx).sum(axis=1), (counts * dy * dy).sum(axis=1)


def quotient(products: Flags, of_x: Flags, of_y: Flags) -> Flags:
    """Correlations from sums of products; NaN where one of the two does not vary."""
    varies = (of_x > VARIES) & (of_y > VARIES)
    return np.where(varies, products / np.sqrt(np.where(varies, of_x * of_y, 1.0)), np.nan)


def ranks_in_rows(values: Flags) -> Flags:
    """The mean rank of each of ``values [B, m]`` in its row; for small m."""
    above = (values[:, :, None] > values[:, None, :]).sum(axis=2)
    level = (values[:, :, None] == values[:, None, :]).sum(axis=2)
    placed: Flags = above + (level + 1) / 2
    return placed


def correlation(value: Flags, resampled: Flags, questions: int) -> Estimate | None:
    """The estimate from the sample's correlation ``[1]`` and those ``[B]`` of resamples; None without one."""
    defined = resampled[~np.isnan(resampled)]
    if np.isnan(value[0]) or not len(defined):
        return None
    return _estimate(float(value[0]), defined, questions)


def _sums(values: Flags, counts: Counts) -> Flags:
    """``[B]``: sums of ``values [n]`` or ``[s, n]`` in each resample; of several seeds the mean of those drawn."""
    rows = np.atleast_2d(values)
    seeds = len(rows)
    if seeds == 1:
        alone: Flags = counts @ rows[0]
        return alone
    drawn = np.random.default_rng(SEED + 2).multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=len(counts))
    of_all = counts @ rows.mean(axis=0)
    of_drawn = ((counts @ rows.T) * drawn).sum(axis=1) / (seeds - 1)
    spread: Flags = of_all + STUDENT_95[seeds] / NORMAL_95 * (of_drawn - of_all)
    return spread


def _made_up(times: int) -> Flags:
    """How often the one made-up question was drawn, less how often the other: each Poisson(1), as for large n."""
    draws = np.random.default_rng(SEED + 1).poisson(1.0, size=(2, times)).astype(np.float64)
    shift: Flags = draws[0] - draws[1]
    return shift


def _estimate(value: float, resampled: Flags, questions: int) -> Estimate:
    if questions < 2:  # drawn again and again, one question never differs
        return Estimate(value, -math.inf, math.inf)
    low, high = np.percentile(resampled, PERCENTILES)
    return Estimate(value, float(low), float(high))
