"""Farthest-point selection: keep the row whose nearest kept row is the farthest away, by cosine.

With ``S`` the rows kept so far and ``d(i, j) = 1 - cos(v_i, v_j)``, each step takes

    argmax_i  min_{s in S} d(i, s) ,

which is Gonzalez's greedy rule for k-center and for max-min diversity; within a factor of 2 of the best k.
The first is the row whose nearest other row is the farthest away.
"""

import torch
from torch import Tensor

from foveate.select.cosines import cosines, first_best, is_nonzero, unit_rows
from foveate.select.engine import engine
from foveate.select.inputs import check_count, check_features

# In units of the machine epsilon: distances of unit rows that differ by less are ties.
TIE_TOLERANCE = 8.0


@engine
def select_farthest(features: Tensor, k: int) -> Tensor:
    """Indices of ``k`` rows that are far from each other, greedily, by the cosine distance.

    Exactly ``k`` distinct indices always: once every direction is taken (duplicates, parallel rows), and
    for zero rows, which have none, the lowest indices follow. Ties go to the lowest index. A run for k' < k
    gives the first k' of the run for k. A batch gives what its items give one by one.

    Args:
        features: ``[N, D]`` or ``[B, N, D]``. float64 is computed in float64, all else in float32.
            Never changed.
        k: rows to select, ``1 <= k <= N``.

    Returns:
        ``[k]`` or ``[B, k]`` int64, in order of selection.

    Raises:
        InvalidFeatures: wrong shapes, NaN or infinite values.
        InvalidBudget: ``k`` is not an int in ``[1, N]``.

    Source: DivPrune (arXiv 2503.02175); Gonzalez 1985.
    """
    check_features(features, "[N, D] and [B, N, D]", 2, 3)
    check_count(k, features.shape[-2])
    unit = unit_rows(features)
    directed = is_nonzero(unit)
    distance = 1 - cosines(unit)
    tolerance = TIE_TOLERANCE * torch.finfo(unit.dtype).eps
    others = distance.masked_fill(~directed[..., None, :], torch.inf)
    others.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    nearest = others.amin(dim=-1).masked_fill(~directed, 0)
    distance.masked_fill_(~directed[..., None], 0)
    taken = torch.zeros_like(directed)
    order: list[Tensor] = []
    while len(order) < k:  # no value of a tensor is asked for: nothing waits for the device
        chosen = first_best(nearest.masked_fill(taken, -torch.inf), tolerance)
        to_chosen = distance.take_along_dim(chosen[..., None], dim=-1)[..., 0]
        nearest = torch.minimum(nearest, to_chosen) if order else to_chosen
        taken = taken.scatter(-1, chosen, True)
        order.append(chosen)
    return torch.cat(order, dim=-1)
