"""Pivots, and the rows least like each of them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.errors import InvalidFeatures
from foveate.select.cosines import is_nonzero, unit_rows


@torch.no_grad()
def select_unlike(features: Tensor, pivots: Tensor, free: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Per pivot, in their order, the free rows of the lowest cosine with it; what one takes is free no longer.

    Zero rows, which have no direction, come last. Ties go to the lowest index.

    Args:
        features: ``[N, D]``. Never changed.
        pivots: ``[P]`` int64 row indices.
        free: ``[N]`` bool, the rows to choose from. Never changed.
        counts: rows to take, one per pivot.

    Returns:
        Per pivot ``[count]`` int64, least like first.

    Raises:
        InvalidFeatures: NaN or infinite values, counts that are not one per pivot, or more than are free.

    Source: DART (arXiv 2502.11494).
    """
    most = int(free.sum())
    if len(counts) != len(pivots) or sum(counts) > most or min(counts, default=0) < 0:
        raise InvalidFeatures(
            f"counts={list(counts)}: allowed are {len(pivots)} numbers, together at most the {most} free rows"
        )
    unit = unit_rows(features)
    likeness = (unit[pivots] @ unit.T).masked_fill(~is_nonzero(unit), 1)
    free = free.clone()
    groups: list[Tensor] = []
    for row, count in zip(likeness, counts, strict=True):
        group = torch.where(free, row, torch.inf).argsort(stable=True)[:count]
        free[group] = False
        groups.append(group)
    return groups
