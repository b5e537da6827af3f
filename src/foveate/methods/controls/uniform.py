"""Control: tokens on an even grid."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.methods.base import Method
from foveate.methods.controls.blocks import divided
from foveate.tokens import VisualTokens


@dataclass(frozen=True)
class UniformGrid(Method):
    """Keep tokens spread evenly over the image, whatever it shows; in raster order.

    ``k`` tokens lie on evenly spaced rows, each with as equal a share of evenly spaced columns as k
    allows (8 x 8 for 64 of 24 x 24). Tiles and frames share k in proportion to their tokens.

    Source: control.
    Differs: none.
    """

    source: ClassVar[str] = "control"
    complexity: ClassVar[str] = "O(k)"

    def rank(self, tokens: VisualTokens, k: int) -> Tensor:
        """See `Method.rank`."""
        picks = [
            start + index for start, grid, share in divided(tokens.grids, k) for index in _spread(grid, share)
        ]
        return torch.tensor(picks, device=tokens.features.device)


def _spread(grid: tuple[int, int], k: int) -> list[int]:
    height, width = grid
    rows = min(height, max(math.ceil(k / width), round(math.sqrt(k * height / width))))
    picks: list[int] = []
    for i in range(rows):
        share = (i + 1) * k // rows - i * k // rows
        row = (2 * i + 1) * height // (2 * rows)
        picks += [row * width + (2 * j + 1) * width // (2 * share) for j in range(share)]
    return picks
