"""Where an image's tokens are: its grids (tiles, frames), and the rows that are no part of the picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Grid = tuple[int, int]


@dataclass(frozen=True, eq=False)
class View:
    """A grid of tokens that covers a picture: the whole image, its tiles joined, or a frame.

    Attributes:
        name: for people.
        grid: ``(height, width)`` in tokens.
        kept: ascending raster indices of the tokens kept.
    """

    name: str
    grid: Grid
    kept: Tensor


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


def blocks(grid: Grid, size: Grid, start: int = 0) -> Tensor:
    """``[h * w, m]``: which of a grid's patches make up each token, in raster order, counted from ``start``.

    Tokens are equal blocks, as large as the grid holds of them. Patches left over at the right and at the bottom
    are in no token.

    Args:
        grid: ``(height, width)`` in patches.
        size: ``(h, w)`` in tokens.
        start: the number of the first patch.
    """
    (height, width), (h, w) = grid, size
    down, across = height // h, width // w
    patches = torch.arange(start, start + height * width).view(height, width)[: h * down, : w * across]
    return patches.view(h, down, w, across).transpose(1, 2).reshape(h * w, down * across)


def runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """``(start, stop)`` of each unbroken run of true flags."""
    edges = [
        index for index in range(len(flags) + 1) if any(flags[index - 1 : index]) != any(flags[index : index + 1])
    ]
    return list(zip(edges[::2], edges[1::2], strict=True))


def tiling(tiles: int, aspect: float) -> Grid:
    """``(rows, columns)`` of equal square tiles that together are nearest to ``aspect`` (width / height)."""
    shapes = [(tiles // columns, columns) for columns in range(1, tiles + 1) if tiles % columns == 0]
    return min(shapes, key=lambda shape: abs(math.log(shape[1] / shape[0] / aspect)))


def joined(tiles: Sequence[Grid], kept: Sequence[Tensor], shape: Grid) -> tuple[Grid, Tensor]:
    """Tiles of one grid each, put together in raster order to ``shape`` (rows, columns): grid and indices kept."""
    height, width = tiles[0]
    flags = torch.zeros(len(tiles), height * width, dtype=torch.bool)
    for tile, indices in zip(flags, kept, strict=True):
        tile[indices.cpu()] = True
    rows, columns = shape
    whole = flags.reshape(rows, columns, height, width).swapaxes(1, 2)
    return (rows * height, columns * width), whole.flatten().nonzero().flatten()
