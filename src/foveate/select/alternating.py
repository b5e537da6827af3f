"""Rounds of alternating splits: of every other row, drop those most like a row of the rest.

With ``R`` rows left in an order, ``A`` are the first, third, ... and ``B`` the others; ``A`` is sorted by the
falling largest cosine with ``B``, its first rows are dropped, and what is left of ``A``, then ``B``, is the
order of the next round.

Which rows the next round calls ``A`` hangs on every adjacent pair of the sort: two cosines that differ by
rounding decide it. All is therefore computed in float64 where the device has it.
"""

import torch
from torch import Tensor

from foveate.select.cosines import cosines, is_nonzero, unit_rows
from foveate.select.inputs import check_count, check_features

STEP = 8


@torch.no_grad()
def select_alternating(features: Tensor, k: int, step: int = STEP) -> Tensor:
    """Indices of the ``k`` rows that are left when at most ``step`` are dropped per round.

    Exactly ``k`` distinct indices always, for odd numbers of rows and for rounds in which ``A`` has fewer
    than ``step`` rows, too. Zero rows, which are like nothing, are dropped first. Ties go to the one that
    comes first in the order.

    Args:
        features: ``[N, D]``, in the order of the first round. Never changed.
        k: rows to leave, ``1 <= k <= N``.
        step: the most rows dropped per round.

    Returns:
        ``[k]`` int64, in the order of the last round.

    Raises:
        InvalidFeatures: wrong shape, NaN or infinite values.
        InvalidBudget: ``k`` is not an int in ``[1, N]``.

    Source: VisPruner (arXiv 2412.01818).
    """
    check_features(features, "[N, D]", 2)
    check_count(k, len(features))
    unit = unit_rows(features if features.device.type == "mps" else features.double())
    likeness = cosines(unit)
    zero = ~is_nonzero(unit)
    likeness = likeness.masked_fill(zero, -1).masked_fill(zero[:, None], 1)
    left = torch.arange(len(features), device=features.device)
    while len(left) > k:
        a, b = left[0::2], left[1::2]
        highest = likeness[a[:, None], b].amax(dim=1)
        a = a[highest.argsort(descending=True, stable=True)]
        left = torch.cat([a[min(step, len(left) - k) :], b])
    return left
