"""The benchmark's statistics, against scipy, exact bootstraps and data whose answer is known."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from foveate.bench.statistics import (
    Estimate,
    difference,
    moments,
    quotient,
    rank_correlation,
    ranks,
    ranks_in_rows,
    ratio,
    resamples,
    spearman,
    wilson,
)


def test_wilson_agrees_with_published_values():
    # Newcombe 1998, Table I: 81 of 263 and 15 of 148, without continuity correction.
    assert wilson(np.array([1.0] * 81 + [0.0] * 182)) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(np.array([1.0] * 15 + [0.0] * 133)) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(np.zeros(20))[0] == 0
    assert wilson(np.ones(20))[1] == 1


def test_resamples_draw_as_many_questions_as_there_are_and_are_always_the_same():
    counts = resamples(30)
    assert counts.shape == (2000, 30)
    assert (counts.sum(axis=1) == 30).all()
    assert np.array_equal(counts, resamples(30))
    assert counts.mean() == pytest.approx(1)
    assert counts.var() == pytest.approx(1 - 1 / 30, abs=0.02)  # of a multinomial's cell


def percentiles(values, weights):
    """Of a discrete distribution, 2.5 and 97.5."""
    order = np.argsort(values)
    reached = np.cumsum(np.asarray(weights)[order]) / np.sum(weights)
    return tuple(np.asarray(values)[order][np.searchsorted(reached, (0.025, 0.975))])


SHIFTS = np.arange(-8, 9)
CHANCES = stats.skellam.pmf(SHIFTS, 1, 1)  # of a Poisson(1) less another


@pytest.mark.parametrize("gaps", [[0, 1, 1, 0, -1], [0.2, -1, 1, 0, 0.4]])
def test_the_interval_of_a_difference_is_that_of_all_resamples_there_are(gaps):
    gaps = np.array(gaps, dtype=float)
    sums = [sum(drawn) for drawn in product(gaps, repeat=len(gaps))]  # 3125, equally likely
    every = [(total + shift) / len(gaps) for total in sums for shift in SHIFTS]
    estimate = difference(gaps, resamples(len(gaps), times=20000))
    assert estimate.value == pytest.approx(gaps.mean())
    assert (estimate.low, estimate.high) == pytest.approx(
        percentiles(every, np.tile(CHANCES, len(sums))), abs=0.05
    )


def test_the_interval_of_a_ratio_is_that_of_all_resamples_there_are():
    above, below = np.array([1.0, 0, 1, 0, 0]), np.array([1.0, 1, 1, 0, 1])
    sums = [s for drawn in product(np.stack([above, below], axis=1), repeat=5) if (s := sum(drawn))[1] > 0]
    every = [max(top + shift, 0) / bottom for top, bottom in sums for shift in SHIFTS]
    estimate = ratio(above, below, resamples(5, times=20000))
    assert estimate.value == 0.5
    assert (estimate.low, estimate.high) == pytest.approx(
        percentiles(every, np.tile(CHANCES, len(sums))), abs=0.05
    )


@pytest.mark.parametrize("n", [50, 400])
@pytest.mark.parametrize("against", [0, 1, 3, 6])
def test_a_difference_is_claimed_where_the_exact_sign_test_claims_it(n, against):
    for extra in range(1, 16):
        gaps = np.zeros(n)
        gaps[: against + extra], gaps[against + extra : 2 * against + extra] = 1, -1
        exact = stats.binomtest(against, 2 * against + extra).pvalue
        claimed = difference(gaps, resamples(n)).sign == 1
        assert claimed == (exact < 0.05) or 0.03 < exact < 0.08, (extra, exact)


def test_the_luck_of_seeds_is_in_the_interval():
    """Seeds that differ by luck, each the same on every question: more questions do not tell them apart."""
    shares = np.random.default_rng(0).normal(0.5, 0.08, (400, 5))
    covered = []
    for row in shares:
        gaps = np.repeat(row[:, None] - 0.5, 300, axis=1)
        estimate = difference(gaps, resamples(300))
        covered.append(estimate.low <= 0 <= estimate.high)
    assert 0.92 < np.mean(covered) < 0.99


def test_comparisons_are_paired():
    base = np.array([1.0, 0.0] * 50)
    counts = resamples(100)
    same = difference(base - base, counts)
    assert (same.value, same.low, same.high) == pytest.approx((0, -0.03, 0.03), abs=0.011)  # unpaired: 0.14
    worse = base.copy()
    worse[:20] = 0
    estimate = ratio(worse, base, counts)
    assert estimate.low < estimate.value == 0.8 < estimate.high
    assert ratio(worse, np.zeros(100), counts) is None


def test_intervals_cover_a_known_shift_as_often_as_they_say():
    rng = np.random.default_rng(3)
    counts = resamples(150)
    covered = claimed = 0
    for _ in range(400):
        first = (rng.random(150) < 0.6).astype(float)
        second = np.where(rng.random(150) < 0.25, rng.random(150) < 0.2, first)  # a quarter redrawn: -0.1
        covered += (e := difference(second - first, counts)).low <= -0.1 <= e.high
        claimed += e.sign == 1
    assert 0.91 < covered / 400 < 0.99
    assert claimed <= 2  # the wrong sign, for certain


@pytest.mark.parametrize(("interval", "sign"), [((0.1, 0.3), 1), ((-0.3, -0.1), -1), ((-0.1, 0.3), 0)])
def test_only_an_interval_without_zero_has_a_sign(interval, sign):
    assert Estimate(0.2, *interval).sign == sign
    assert Estimate(0, 0, 0.3).sign == Estimate(0, -0.3, 0).sign == 0


@pytest.mark.parametrize("seed", range(5))
def test_spearman_agrees_with_scipy_ties_included(seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 8, 40) / 8.0
    y = (rng.random(40) < 0.3 + 0.4 * x).astype(float)
    assert spearman(x, y)[0] == pytest.approx(stats.spearmanr(x, y).statistic)
    z = rng.normal(size=40)
    assert spearman(x, z)[0] == pytest.approx(stats.spearmanr(x, z).statistic)
    assert np.allclose(ranks(x, np.ones((1, 40)))[0], stats.rankdata(x))
    assert np.allclose(ranks_in_rows(x[None])[0], stats.rankdata(x))


def test_resampled_spearman_is_that_of_the_questions_repeated():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, 25).astype(float), rng.integers(0, 2, 25).astype(float)
    counts = resamples(25, times=50)
    for row, value in zip(counts.astype(int), spearman(x, y, counts), strict=True):
        assert value == pytest.approx(stats.spearmanr(np.repeat(x, row), np.repeat(y, row)).statistic)


def test_what_does_not_vary_has_no_correlation():
    x, y = np.arange(20.0), np.ones(20)
    assert rank_correlation(x, y, resamples(20)) is None
    assert rank_correlation(y, x, resamples(20)) is None
    estimate = rank_correlation(x, x**3, resamples(20))
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((1, 1, 1))


def test_moments_and_quotient_are_pearsons():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=30), rng.normal(size=30)
    assert quotient(*moments(x, y, np.ones((1, 30))))[0] == pytest.approx(np.corrcoef(x, y)[0, 1])
