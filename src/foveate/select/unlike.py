"""Pivots, and the rows least like each of them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.errors import InvalidFeatures
from foveate.select.checks import refuse_if
from foveate.select.cosines import is_nonzero, unit_rows
from foveate.select.engine import engine


@engine
def select_unlike(features: Tensor, pivots: Tensor, free: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Per pivot, in their order, the free rows of the lowest cosine with it; what one takes is free no longer.

    Zero rows, which have no direction, come last. Ties go to the lowest index.

    Args:
        features: ``[N, D]`` or ``[B, N, D]``. Never changed.
        pivots: ``[P]`` or ``[B, P]`` int64 row indices.
        free: ``[N]`` or ``[B, N]`` bool, the rows to choose from. Never changed.
        counts: rows to take, one per pivot.

    Returns:
        Per pivot ``[count]`` or ``[B, count]`` int64, least like first.

    Raises:
        InvalidFeatures: NaN or infinite values, counts that are not one per pivot, or more than are free.

    Source: DART (arXiv 2502.11494).
    """
    if len(counts) != pivots.shape[-1] or min(counts, default=0) < 0:
        raise InvalidFeatures(f"counts={list(counts)}: allowed are {pivots.shape[-1]} numbers of 0 or more")
    most = free.sum(dim=-1)
    refuse_if(
        most < sum(counts),
        lambda: InvalidFeatures(
            f"counts={list(counts)}: allowed are together at most the {int(most.min())} free rows"
        ),
    )
    unit = unit_rows(features)
    chosen = unit.take_along_dim(pivots[..., None], dim=-2)
    likeness = (chosen @ unit.mT).masked_fill(~is_nonzero(unit)[..., None, :], 1)
    groups: list[Tensor] = []
    for row, count in zip(likeness.unbind(dim=-2), counts, strict=True):
        group = row.masked_fill(~free, torch.inf).argsort(dim=-1, stable=True)[..., :count]
        free = free.scatter(-1, group, False)
        groups.append(group)
    return groups
