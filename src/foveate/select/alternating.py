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
from foveate.select.engine import engine
from foveate.select.inputs import check_count, check_features

STEP = 8

# On a CPU, more rows than these are looked up in lists of each row's NEIGHBOURS most alike.
MANY, NEIGHBOURS = 1024, 64


@engine
def select_alternating(features: Tensor, k: int, step: int = STEP) -> Tensor:
    """Indices of the ``k`` rows that are left when at most ``step`` are dropped per round.

    Exactly ``k`` distinct indices always, for odd numbers of rows and for rounds in which ``A`` has fewer
    than ``step`` rows, too. Zero rows, which are like nothing, are dropped first. Ties go to the one that
    comes first in the order. A batch gives what its items give one by one.

    Args:
        features: ``[N, D]`` or ``[B, N, D]``, in the order of the first round. Never changed.
        k: rows to leave, ``1 <= k <= N``.
        step: the most rows dropped per round.

    Returns:
        ``[k]`` or ``[B, k]`` int64, in the order of the last round.

    Raises:
        InvalidFeatures: wrong shape, NaN or infinite values.
        InvalidBudget: ``k`` is not an int in ``[1, N]``.

    Source: VisPruner (arXiv 2412.01818).
    """
    check_features(features, "[N, D] and [B, N, D]", 2, 3)
    n = features.shape[-2]
    check_count(k, n)
    if features.dim() == 3 and n > MANY and features.device.type == "cpu" and len(features):
        return torch.stack([select_alternating(item, k, step) for item in features])
    unit = unit_rows(features if features.device.type == "mps" else features.double())
    likeness = cosines(unit)
    zero = ~is_nonzero(unit)
    likeness.masked_fill_(zero[..., None, :], -1).masked_fill_(zero[..., None], 1)
    left = torch.arange(n, device=features.device).expand(features.shape[:-1])
    lists = _Lists(likeness) if features.dim() == 2 and features.device.type == "cpu" else None
    while (rows := left.shape[-1]) > k:
        a, b = left[..., 0::2], left[..., 1::2]
        highest = lists.highest(a, b) if lists and rows > MANY else _highest(likeness, a, b)
        a = a.take_along_dim(highest.argsort(dim=-1, descending=True, stable=True), dim=-1)
        left = torch.cat([a[..., min(step, rows - k) :], b], dim=-1)
    return left


def _highest(likeness: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``[..., A]``: of each row of ``a [..., A]``, its largest likeness with one of ``b [..., B]``."""
    pairs: tuple[Tensor, ...] = (a[..., None], b[..., None, :])
    if likeness.dim() == 3:
        pairs = (torch.arange(len(a), device=a.device)[:, None, None], *pairs)
    return likeness[pairs].amax(dim=-1)


class _Lists:
    """The rows left that are most alike to each row, so that a round need not look at all pairs.

    Where nothing on a row's list is in ``B``, all of ``B`` is looked at. Lists are made anew once half of the
    rows are gone. All rounds together take O(N^2).
    """

    def __init__(self, likeness: Tensor) -> None:
        self._likeness = likeness
        self._listed = likeness.new_empty(len(likeness), NEIGHBOURS, dtype=torch.long)
        self._values = likeness.new_empty(len(likeness), NEIGHBOURS)
        self._fresh = 0  # rows that there were when the lists were made

    def highest(self, a: Tensor, b: Tensor) -> Tensor:
        """What `_highest` gives."""
        if not self._fresh or 2 * (len(a) + len(b)) <= self._fresh:
            self._make(torch.cat([a, b]))
        wanted = torch.zeros(len(self._likeness), dtype=torch.bool).index_fill(0, b, True)
        hits = wanted[self._listed[a]]
        first = hits.byte().argmax(dim=1, keepdim=True)
        highest = self._values[a].gather(1, first)[:, 0]
        missed = (~hits.gather(1, first)[:, 0]).nonzero()[:, 0]
        highest[missed] = _highest(self._likeness, a[missed], b)
        return highest

    def _make(self, left: Tensor) -> None:
        values, places = self._likeness[left][:, left].topk(NEIGHBOURS)
        self._values[left], self._listed[left], self._fresh = values, left[places], len(left)
