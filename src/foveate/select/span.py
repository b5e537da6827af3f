"""What a set of rows leaves of the features: selections and mixtures alike."""

import torch
from torch import Tensor

from foveate.errors import InvalidFeatures
from foveate.select.engine import engine
from foveate.select.inputs import check_finite


@engine
def energy_outside(features: Tensor, rows: Tensor) -> Tensor:
    """``||V - P V||_F^2 / ||V||_F^2`` with ``P`` the orthogonal projector on the span of ``rows``.

    With rows of ``features`` it is the last entry of `residual_energy`; other rows, such as means, need
    not be of ``features``.

    Args:
        features: ``[N, D]``.
        rows: ``[k, D]``.

    Returns:
        A float64 scalar; zero where every feature is zero.

    Raises:
        InvalidFeatures: shapes that do not fit, NaN or infinite values.
    """
    if features.dim() != 2 or rows.dim() != 2 or features.shape[1] != rows.shape[1]:
        shapes = f"{tuple(features.shape)} and {tuple(rows.shape)}"
        raise InvalidFeatures(f"features and rows of shapes {shapes}: allowed are [N, D] and [k, D]")
    check_finite("features", features)
    check_finite("rows", rows)
    scaled = features.double() / features.double().abs().amax().clamp(min=torch.finfo(torch.double).tiny)
    # The span does not depend on lengths, the rank's tolerance does.
    unit = torch.nn.functional.normalize(rows.double(), dim=1, eps=torch.finfo(torch.double).tiny)
    _, strength, directions = torch.linalg.svd(unit, full_matrices=False)
    tolerance = torch.finfo(torch.double).eps * max(rows.shape)
    basis = directions[strength > tolerance * strength[:1]]
    total = scaled.square().sum()
    outside = (scaled - (scaled @ basis.T) @ basis).square().sum()
    return outside / total if total > 0 else total
