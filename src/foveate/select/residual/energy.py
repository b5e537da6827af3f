"""How much of the features the rows kept leave, and how little any subspace could."""

from numbers import Integral

import torch
from torch import Tensor

from foveate.errors import InvalidBudget, InvalidFeatures
from foveate.select.engine import engine
from foveate.select.inputs import check_features
from foveate.select.residual.reference import Basis
from foveate.select.residual.rows import scaled


@engine
def residual_energy(features: Tensor, kept: Tensor) -> Tensor:
    """Reconstruction error along the way: ``||V - P_S V||_F^2 / ||V||_F^2`` after 0, 1, ... rows kept.

    Args:
        features: ``[N, D]``.
        kept: ``[k]`` integer row indices, in order of selection.

    Returns:
        ``[k + 1]`` float64, from 1 downwards; all zero where every feature is zero.

    Raises:
        InvalidFeatures: wrong shapes, NaN or infinite values, an index out of range.
    """
    check_features(features, "[N, D]", 2)
    if kept.dim() != 1 or kept.is_floating_point():
        raise InvalidFeatures(f"kept of shape {tuple(kept.shape)} and {kept.dtype}: allowed are [k] integers")
    basis = Basis(*scaled(features.double()), len(kept))
    path = [basis.total()]
    for index in kept.tolist():
        if not 0 <= index < len(features):
            raise InvalidFeatures(f"row index {index}: allowed is an int from 0 to {len(features) - 1}")
        basis.add(index)
        path.append(basis.total())
    energies = torch.stack(path)
    return energies / energies[0] if energies[0] > 0 else energies


@engine
def optimal_energy(features: Tensor, k: int) -> Tensor:
    """The least reconstruction error any rank-0, 1, ..., k subspace leaves, relative to the total.

    The tails of the Gram spectrum (Eckart-Young): no choice of rows can do better.

    Args:
        features: ``[N, D]``.
        k: the largest rank, an int of 0 or more.

    Returns:
        ``[k + 1]`` float64, from 1 downwards; all zero where every feature is zero.

    Raises:
        InvalidFeatures: wrong shape, NaN or infinite values.
        InvalidBudget: ``k`` is negative or no int.
    """
    check_features(features, "[N, D]", 2)
    if isinstance(k, bool) or not isinstance(k, Integral) or k < 0:
        raise InvalidBudget(f"k={k!r}: allowed is an int of 0 or more")
    rows, _ = scaled(features.double())
    gram = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
    spectrum = torch.linalg.eigvalsh(gram).clamp(min=0)  # ascending
    tails = torch.cat([spectrum.new_zeros(1), spectrum.cumsum(0)]).flip(0)
    tails = torch.nn.functional.pad(tails, (0, max(0, k + 1 - len(tails))))[: k + 1]
    return tails / tails[0] if tails[0] > 0 else tails
