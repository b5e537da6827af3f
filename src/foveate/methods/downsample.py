"""Control: a smaller image."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.methods.blocks import anchors, lattice
from foveate.methods.merging import Resizing
from foveate.tokens import VisualTokens


@dataclass(frozen=True)
class DownsampledImage(Resizing):
    """Encode the image shrunk so far that the vision tower gives k tokens, and spread them over the grid.

    Bicubic with antialiasing, to h x w patches; position embeddings are interpolated by the tower itself.
    192 of 24 x 24 are 12 x 16, 128 are 8 x 16. Where k has no h x w of nearly the grid's shape, the next
    lower count that has: 66 = 6 x 11 for 67; `Report.tokens_after` tells.

    Source: control; a small image beats many pruning methods, as VTC-Bench points out.
    Differs: none.
    """

    source: ClassVar[str] = "control"
    complexity: ClassVar[str] = "O(k), and encoding once more"

    def rank(self, tokens: VisualTokens, k: int) -> Tensor:
        """See `Resizing`: ``[h w]``, the middles of as many blocks of the full grid."""
        h, w = self.size(tokens.grids[0], k)
        return anchors(tokens.grids, h * w).to(tokens.features.device)

    def size(self, grid: tuple[int, int], k: int) -> tuple[int, int]:
        """See `Resizing.size`."""
        return lattice(grid, k)
