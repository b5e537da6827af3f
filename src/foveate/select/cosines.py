"""Cosines of rows with rows, and the first among equals."""

import torch
from torch import Tensor

from foveate.select.inputs import check_finite, precise


def unit_rows(features: Tensor) -> Tensor:
    """``[..., N, D]`` rows of length 1; zero rows stay zero. float64 stays, all else becomes float32.

    Lengths far outside the range whose squares a float can hold are no trouble.

    Raises:
        InvalidFeatures: NaN or infinite values.
    """
    rows = precise(features)
    limits = torch.finfo(rows.dtype)
    low, high = torch.aminmax(rows, dim=-1, keepdim=True)
    peaks = torch.maximum(high, -low)
    check_finite("features", peaks)
    ordinary = (peaks > limits.tiny**0.4) & (peaks < limits.max**0.4)  # else squares vanish or overflow
    rows = rows * torch.where(ordinary | (peaks == 0), 1, (1 / peaks).clamp(max=limits.max))
    lengths = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    unit: Tensor = rows / lengths.masked_fill(lengths == 0, 1)
    return unit


def cosines(unit: Tensor) -> Tensor:
    """``[..., N, N]`` cosines of ``unit [..., N, D]``, at most 1, the diagonal exactly 1 (0 of a zero row).

    Exactly symmetric, which a product of matrices is not: two rows that are each other's nearest must tie.
    """
    product = unit @ unit.mT
    product = (product + product.mT).div_(2).clamp_(max=1)
    product.diagonal(dim1=-2, dim2=-1).copy_(is_nonzero(unit))
    return product


def is_nonzero(rows: Tensor) -> Tensor:
    """``[..., N]`` bool: which of ``rows [..., N, D]`` have a direction."""
    return (rows != 0).any(dim=-1)


def first_best(scores: Tensor, tolerance: Tensor | float) -> Tensor:
    """``[..., 1]``, the lowest index of ``scores [..., N]`` within ``tolerance`` of the largest."""
    return (scores + tolerance >= scores.amax(dim=-1, keepdim=True)).byte().argmax(dim=-1, keepdim=True)
