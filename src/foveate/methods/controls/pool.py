"""Control: means of blocks of tokens."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.methods.base import precise
from foveate.methods.controls.blocks import anchors, blocks, divided
from foveate.methods.merging import Merging
from foveate.tokens import VisualTokens


@dataclass(frozen=True)
class AveragePool(Merging):
    """Put the mean of each of k blocks of the token grid in place of its middle token; in raster order.

    The blocks cover the grid without overlap: 8 x 8 blocks of 3 x 3 tokens for 64 of 24 x 24. 192 are
    12 x 16 blocks of 2 x 1 or 2 x 2 tokens; a k that is no such lattice has rows with unequal shares.
    Tiles and frames share k in proportion to their tokens.

    Source: control.
    Differs: none.
    """

    source: ClassVar[str] = "control"
    complexity: ClassVar[str] = "O(k N D)"

    def rank(self, tokens: VisualTokens, k: int) -> Tensor:
        """See `Method.rank`: of each block, the token nearest its middle."""
        return anchors(tokens.grids, k).to(tokens.features.device)

    def merge(self, tokens: VisualTokens, k: int) -> Tensor:
        """See `Merging.merge`: the mean of each block, computed in float32 or better."""
        features = precise(tokens.features)
        means = [
            _share_of_tokens(grid, share).to(features) @ features[start : start + grid[0] * grid[1]]
            for start, grid, share in divided(tokens.grids, k)
        ]
        return torch.cat(means).to(tokens.features.dtype)


def _share_of_tokens(grid: tuple[int, int], k: int) -> Tensor:
    """``[k, height * width]``: how much of each token is in the mean of each block."""
    share = torch.zeros(k, *grid, dtype=torch.float64)
    for index, block in enumerate(blocks(grid, k)):
        area = (block.bottom - block.top) * (block.right - block.left)
        share[index, block.top : block.bottom, block.left : block.right] = 1 / area
    return share.flatten(1)
