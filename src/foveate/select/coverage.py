"""Facility location: keep the row that covers most of what the rows kept so far leave uncovered.

A row ``u`` is covered as far as its most similar kept row is like it, ``c_u = max(0, max_s cos(v_u, v_s))``.
Each step takes

    argmax_j  w_j * g_j     with the gain     g_j = sum_u max(0, cos(v_u, v_j) - c_u) ,

or ``argmax_j g_j + w_j``. The sum of the ``c_u`` is submodular: unweighted, the greedy choice is within
1 - 1/e of the best k.
"""

import torch
from torch import Tensor

from foveate.errors import InvalidOption
from foveate.select.cosines import cosines, first_best, unit_rows
from foveate.select.engine import engine
from foveate.select.inputs import check_count, check_features, check_weight

COMBINE = ("multiply", "add")

# In units of the machine epsilon: gains that differ by less are ties.
TIE_TOLERANCE = 8.0


@engine
def select_coverage(
    features: Tensor, k: int, *, weight: Tensor | None = None, combine: str = "multiply"
) -> Tensor:
    """Indices of ``k`` rows that cover all rows, greedily, by the cosine.

    Exactly ``k`` distinct indices always: once nothing is left to cover, the rest is filled by weight, then
    by index; a zero row covers nothing. Ties go to the lowest index. A run for k' < k gives the first k' of
    the run for k. A batch gives what its items give one by one.

    Args:
        features: ``[N, D]`` or ``[B, N, D]``. float64 is computed in float64, all else in float32.
            Never changed.
        k: rows to select, ``1 <= k <= N``.
        weight: ``[N]`` (or ``[B, N]``), >= 0; None means 1.
        combine: ``multiply`` the gain with the weight, or ``add`` the weight to it.

    Returns:
        ``[k]`` or ``[B, k]`` int64, in order of selection.

    Raises:
        InvalidFeatures: wrong shapes, NaN or infinite values, a negative weight.
        InvalidBudget: ``k`` is not an int in ``[1, N]``.
        InvalidOption: another ``combine``.

    Source: SCOPE (arXiv 2510.24214).
    """
    check_features(features, "[N, D] and [B, N, D]", 2, 3)
    check_count(k, features.shape[-2])
    check_weight(weight, features)
    if combine not in COMBINE:
        raise InvalidOption(f"combine={combine!r}: allowed are {', '.join(COMBINE)}")
    add = combine == "add"
    unit = unit_rows(features)
    likeness = cosines(unit)
    weights = unit.new_ones(unit.shape[:-1]) if weight is None else weight.to(unit)
    if not add:
        peak = weights.amax(dim=-1, keepdim=True)
        weights = weights / peak.masked_fill(peak == 0, 1)
    n, eps = unit.shape[-2], torch.finfo(unit.dtype).eps
    covered = torch.zeros_like(weights)[..., None]
    uncovered = torch.empty_like(likeness)
    taken = torch.zeros_like(weights, dtype=torch.bool)
    order: list[Tensor] = []
    while len(order) < k:  # no value of a tensor is asked for: nothing waits for the device
        gains = torch.sub(likeness, covered, out=uncovered).clamp_(min=0).sum(dim=-2)
        gains = gains.masked_fill((gains <= n * eps) | taken, 0)  # a sum of N roundings
        scores = gains + weights if add else gains * weights
        exhausted = ~(scores.masked_fill(taken, 0) > 0).any(dim=-1, keepdim=True)
        scores = torch.where(exhausted, weights, scores).masked_fill(taken, -torch.inf)
        noise = 1 if add else weights.take_along_dim(scores.argmax(dim=-1, keepdim=True), dim=-1)
        chosen = first_best(scores, torch.where(exhausted, 0, TIE_TOLERANCE * eps * noise))
        covered = torch.maximum(covered, likeness.take_along_dim(chosen[..., None, :], dim=-1))
        taken = taken.scatter(-1, chosen, True)
        order.append(chosen)
    return torch.cat(order, dim=-1)
