"""How much of an image the kept tokens span, for many budgets in one go."""

import torch
from torch import Tensor

from foveate.select import residual_energy

DEPENDENT = 1e-12  # of a row's length: a residual under it makes the row dependent on those before
DECIMALS = 9  # what is left under this is rounding


class Energies:
    """Residual energies of one batch of images: each order is factored once, prefixes of it are looked up.

    Args:
        features: per image ``[N, D]``, all its tokens.
    """

    def __init__(self, features: list[Tensor]) -> None:
        self._features = features
        self._paths: dict[int, tuple[Tensor, list[float]]] = {}

    def of(self, orders: list[Tensor]) -> list[float]:
        """Per image, the share of its energy that the rows ``[k]`` do not span, between 0 and 1."""
        return [self._of(index, order) for index, order in enumerate(orders)]

    def _of(self, index: int, order: Tensor) -> float:
        known, path = self._paths.get(index, (order[:0], [1.0]))
        if len(known) < len(order) or not torch.equal(known[: len(order)], order):
            path = energy_path(self._features[index], order)
            self._paths[index] = (order, path)
        return path[len(order)]


def energy_path(features: Tensor, order: Tensor) -> list[float]:
    """`foveate.select.residual_energy`, ``k + 1`` values, by one QR factorisation: some ten times faster.

    Rows that depend on those before them leave the factor's directions open; then the slow way is taken.

    Args:
        features: ``[N, D]``.
        order: ``[k]`` distinct row indices.
    """
    rows = features.double()
    kept = rows[order[: rows.shape[1]]]
    directions, triangle = torch.linalg.qr(kept.T)
    lengths = torch.linalg.vector_norm(kept, dim=1)
    if bool((triangle.diagonal().abs() <= DEPENDENT * lengths).any()):
        path = residual_energy(features, order).clamp(min=0)
    else:
        shares = (rows @ directions).square().sum(dim=0) / rows.square().sum()
        path = torch.nn.functional.pad(1 - shares.cumsum(dim=0), (1, 0), value=1.0).clamp(min=0)
        path = torch.nn.functional.pad(path, (0, len(order) + 1 - len(path)))  # D rows span everything
    return [round(value, DECIMALS) for value in path.tolist()]
