"""Cosines of rows with rows, and the first among equals."""

import torch
from torch import Tensor

from foveate.errors import InvalidFeatures


def unit_rows(features: Tensor) -> Tensor:
    """``[N, D]`` rows of length 1; zero rows stay zero. float64 stays, all else becomes float32.

    Lengths far outside the range whose squares a float can hold are no trouble.

    Raises:
        InvalidFeatures: NaN or infinite values.
    """
    rows = features if features.dtype == torch.float64 else features.float()
    limits = torch.finfo(rows.dtype)
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    unit: Tensor = rows / lengths
    fits = (lengths > limits.tiny**0.5 / limits.eps) & (lengths < limits.max**0.5)
    if bool(fits.all()):
        return unit
    peaks = rows.abs().amax(dim=1, keepdim=True)
    if not bool(torch.isfinite(peaks).all()):
        raise InvalidFeatures("features hold NaN or infinite values: allowed are finite numbers")
    scaled = rows / torch.where(peaks > 0, peaks, 1)
    lengths = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return torch.where(fits, unit, scaled / torch.where(lengths > 0, lengths, 1))


def cosines(unit: Tensor) -> Tensor:
    """``[N, N]`` cosines of ``unit [N, D]`` with each other, at most 1, the diagonal exactly 1 (0 of a zero row).

    Exactly symmetric, which a product of matrices is not: two rows that are each other's nearest must tie.
    """
    product = unit @ unit.T
    product = ((product + product.T) / 2).clamp(max=1)
    product.diagonal().copy_(is_nonzero(unit))
    return product


def is_nonzero(rows: Tensor) -> Tensor:
    """``[N]`` bool: which of ``rows [N, D]`` have a direction."""
    return rows.abs().amax(dim=1) > 0


def first_best(scores: Tensor, tolerance: Tensor | float) -> Tensor:
    """``[1]``, the lowest index of ``scores [N]`` within ``tolerance`` (a number, or ``[N]``) of the largest."""
    return (scores + tolerance >= scores.amax()).byte().argmax(dim=0, keepdim=True)
