"""Where an image's tokens are: its grids (tiles, frames), and the rows that are no part of the picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Grid = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Layout:
    """The tokens of one image or video.

    Attributes:
        grids: ``(height, width)`` of each tile or frame: tokens that are not locked are these grids, one after
            the other, each in raster order.
        locked: ``[N]`` bool, rows that are never dropped: newlines, separators, a CLS row.
    """

    grids: tuple[Grid, ...]
    locked: Tensor

    @classmethod
    def of(cls, *grids: Grid) -> "Layout":
        """Grids without locked rows."""
        return cls(grids, torch.zeros(sum(height * width for height, width in grids), dtype=torch.bool))


def square(n: int) -> Grid:
    """The square grid of ``n`` tokens; one line where they are none."""
    side = round(n**0.5)
    return (side, side) if side * side == n else (1, n)


def runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """``(start, stop)`` of each unbroken run of true flags."""
    edges = [
        index for index in range(len(flags) + 1) if any(flags[index - 1 : index]) != any(flags[index : index + 1])
    ]
    return list(zip(edges[::2], edges[1::2], strict=True))
