"""What the implementations of `select_residual` share: the numbers they compute with, tolerances, the filling."""

import torch
from torch import Tensor

from foveate.select.inputs import check_finite, precise

# In units of the machine epsilon. A residual shorter than RANK_TOLERANCE * eps of the row itself is
# rounding; scores within TIE_TOLERANCE * eps of the best are ties and go to the lowest index.
RANK_TOLERANCE = 64.0
TIE_TOLERANCE = 32.0
DOUBT = 1 / 3  # eps to this power is where energies of a Cholesky factorisation become uncertain


def scaled(features: Tensor) -> tuple[Tensor, Tensor]:
    """Finite rows in the dtype of the computation, and their norms ``[N]`` in `wide`.

    Rows are rescaled only where products would overflow or vanish; norms too small to be one are 0.

    Raises:
        InvalidFeatures: NaN or infinite values.
    """
    rows = features.detach()
    rows = precise(rows).contiguous()  # sums hang on the layout
    limit = torch.finfo(rows.dtype).max ** 0.4
    norms = torch.linalg.vector_norm(rows, dim=1)  # the one pass over rows of ordinary magnitude
    peak = norms.amax()  # NaN wins
    if not 1 / limit < peak < limit:
        rows = _rescaled(rows, limit)
        norms = torch.linalg.vector_norm(rows, dim=1, dtype=wide(rows.device))
    else:
        norms = norms.to(wide(rows.device))
        small = norms < torch.finfo(rows.dtype).tiny ** 0.25  # their squares lost digits
        if bool(small.any()):
            norms[small] = torch.linalg.vector_norm(rows[small], dim=1, dtype=norms.dtype)
    return rows, torch.where(norms > torch.finfo(rows.dtype).tiny, norms, 0)


def relative(weight: Tensor | None, rows: Tensor) -> Tensor:
    """``[..., N]`` weights in `wide`, the largest of each ``N`` 1; ``[N]`` ones where there are none."""
    if weight is None:
        return rows.new_ones(len(rows), dtype=wide(rows.device))
    weight = weight.detach().to(rows.device, wide(rows.device))  # before any quotient is rounded
    peak = weight.amax(dim=-1, keepdim=True)
    return torch.where(peak > 0, weight / peak, weight)


def magnitudes(norms: Tensor) -> Tensor:
    """``[N]`` squared lengths, the largest 1; all 0 where every row is."""
    peak = norms.amax()
    return (norms / peak if peak > 0 else norms).square()


def outside(rows: Tensor, basis: Tensor) -> Tensor:
    """Rows ``[D]`` or ``[N, D]`` without their part in the span of an orthonormal basis; "twice is enough"."""
    for _ in range(2):
        rows = rows - (rows @ basis.T) @ basis
    return rows


def wide(device: torch.device) -> torch.dtype:
    """The dtype of what is kept once per row: Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def filled(order: list[int], weights: Tensor, k: int) -> Tensor:
    """``order``, filled up to ``k`` with the other rows by falling weight, then by index."""
    chosen = torch.tensor(order, dtype=torch.long, device=weights.device)
    if len(order) == k:
        return chosen
    free = torch.ones(len(weights), dtype=torch.bool, device=weights.device)
    free[chosen] = False
    by_weight = torch.argsort(weights, descending=True, stable=True)
    return torch.cat([chosen, by_weight[free[by_weight]][: k - len(order)]])


def _rescaled(rows: Tensor, limit: float) -> Tensor:
    low, high = torch.aminmax(rows)  # NaN wins
    peak = torch.maximum(high, -low)
    check_finite("features", peak)
    if not bool(torch.isfinite(peak)):
        return torch.zeros_like(rows)  # the check is read later: any rows that cost no step
    return rows / peak if peak > limit or 0 < peak < 1 / limit else rows
