"""Control: a smaller image."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.methods.controls.blocks import anchors, divided, lattice
from foveate.methods.merging import Resizing
from foveate.tokens import VisualTokens


@dataclass(frozen=True)
class DownsampledImage(Resizing):
    """Shrink the image so far that it gives k tokens, encode it, and spread the tokens over the grid.

    Bicubic with antialiasing, to the pixels of h x w tokens. 192 of 24 x 24 are 12 x 16, 128 are 8 x 16. Where
    k has no h x w of nearly the grid's shape, the next lower count that has: 66 = 6 x 11 for 67;
    `Report.tokens_after` tells. Tiles and frames share k in proportion to their tokens.

    Vision towers that take images of any size encode it as it is; CLIP's interpolates its position embeddings.
    The others are given it resized up again to the size they want, and of all tokens those in the middles of
    h x w blocks are kept: what is lost is detail, and the tower works as much as ever. `Report.resized` tells.

    Source: control; a small image beats many pruning methods, as VTC-Bench points out.
    Differs: none.
    """

    source: ClassVar[str] = "control"
    complexity: ClassVar[str] = "O(k), and encoding once more"

    def rank(self, tokens: VisualTokens, k: int) -> Tensor:
        """See `Resizing`: of each grid's share ``[h w]``, the middles of as many blocks of it."""
        places = [
            start + anchors([grid], math.prod(self.size(grid, share)))
            for start, grid, share in divided(tokens.grids, k)
        ]
        return torch.cat(places).to(tokens.features.device)

    def size(self, grid: tuple[int, int], k: int) -> tuple[int, int]:
        """See `Resizing.size`."""
        return lattice(grid, k)
