"""Intervals of 95 %: Wilson's for an accuracy, the paired bootstrap for a ratio of two."""

import math

import numpy as np

NORMAL_95 = 1.959963984540054
RESAMPLES = 2000

Flags = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def wilson(right: Flags) -> tuple[float, float]:
    """Wilson's score interval of the share of ones in ``right [n]``, ``n >= 1``."""
    n, share, z = len(right), float(right.mean()), NORMAL_95
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def relative(right: Flags, baseline: Flags) -> float | None:
    """Mean of ``right`` over the mean of ``baseline``; None where the baseline has nothing right."""
    return float(right.mean() / baseline.mean()) if baseline.any() else None


def relative_interval(right: Flags, baseline: Flags) -> tuple[float, float] | None:
    """Percentile interval of `relative`, the questions resampled in pairs; the same for the same data.

    Resamples without a right answer of the baseline are left out; None where the baseline has none.
    """
    if not baseline.any():
        return None
    picks = np.random.default_rng(0).integers(len(right), size=(RESAMPLES, len(right)))
    above, below = right[picks].mean(axis=1), baseline[picks].mean(axis=1)
    low, high = np.percentile(above[below > 0] / below[below > 0], (2.5, 97.5))
    return float(low), float(high)
