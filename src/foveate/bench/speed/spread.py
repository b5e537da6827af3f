"""Medians of few repeats: quartiles, and an interval that assumes nothing of how times are distributed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """A sample's median.

    Attributes:
        median: the middle.
        quartiles: the middle half of the sample.
        interval: of the median, between two of the sample's values (order statistics).
        confidence: of the interval: 0.95 or more from 6 repeats on, less where there are fewer.
    """

    median: float
    quartiles: tuple[float, float]
    interval: tuple[float, float]
    confidence: float

    @property
    def sign(self) -> int:
        """Of a ratio: 1 or -1 where the interval lies above or below 1; 0 elsewhere, and of few repeats."""
        if self.confidence < CONFIDENCE:  # a single repeat has an interval too, of one point
            return 0
        return (self.interval[0] > 1) - (self.interval[1] < 1)


def spread(values: Sequence[float]) -> Spread:
    """Of a sample of 1 or more."""
    ordered = sorted(values)
    n = len(ordered)
    depth = max([cut for cut in range(1, n // 2 + 1) if _confidence(n, cut) >= CONFIDENCE], default=1)
    low, middle, high = (float(value) for value in np.percentile(ordered, (25, 50, 75)))
    return Spread(middle, (low, high), (ordered[depth - 1], ordered[n - depth]), _confidence(n, depth))


def _confidence(n: int, cut: int) -> float:
    """That the median lies between the ``cut``-th smallest and the ``cut``-th largest of ``n``."""
    outside: int = sum(math.comb(n, k) for k in range(cut))
    return max(0.0, 1 - 2 * outside / float(2**n))
