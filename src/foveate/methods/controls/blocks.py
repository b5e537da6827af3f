"""A token grid cut into k blocks, as even and as near to square as k allows."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from foveate.share import shares

# A lattice of h x w in a grid of H x W may be this far from its shape: 8 x 16 of 24 x 24 is used, 4 x 16 is not.
STRETCH = 2
Grid = tuple[int, int]


class Block(NamedTuple):
    """Rows ``top`` to ``bottom - 1`` and columns ``left`` to ``right - 1`` of the grid."""

    top: int
    bottom: int
    left: int
    right: int

    def anchor(self, width: int) -> int:
        """Raster index, in a grid of ``width`` columns, of the token nearest the middle; up and left first."""
        return (self.top + self.bottom - 1) // 2 * width + (self.left + self.right - 1) // 2


def blocks(grid: Grid, k: int) -> list[Block]:
    """Exactly ``k`` blocks, in raster order; every token of the grid is in one.

    A lattice where ``k`` is one (`lattice`), else rows of blocks with shares as equal as k allows.

    Args:
        grid: ``(height, width)``.
        k: ``1 <= k <= height * width``.
    """
    height, width = grid
    rows, columns = lattice(grid, k)
    if rows * columns == k:
        shares = [columns] * rows
    else:
        rows = min(height, k, max(math.ceil(k / width), round(math.sqrt(k * height / width))))
        shares = [(i + 1) * k // rows - i * k // rows for i in range(rows)]
    return [
        Block(i * height // rows, (i + 1) * height // rows, j * width // share, (j + 1) * width // share)
        for i, share in enumerate(shares)
        for j in range(share)
    ]


def lattice(grid: Grid, k: int) -> Grid:
    """The largest ``(h, w)`` with ``h * w <= k`` that fits the grid and nearly has its shape.

    Nearly: within `STRETCH`; a grid too narrow for any such lattice takes any. Of equally large ones the
    one nearest the grid's shape, then the wider one: 12 x 16 for 192 of 24 x 24.

    Args:
        grid: ``(height, width)``.
        k: 1 or more.
    """
    height, width = grid
    fitting = [(h, w) for h in range(1, height + 1) for w in range(1, width + 1) if h * w <= k]
    near = [(h, w) for h, w in fitting if _stretch(grid, h, w) <= STRETCH]
    return max(near or fitting, key=lambda size: (size[0] * size[1], -_stretch(grid, *size), size[1]))


def divided(grids: Sequence[Grid], k: int) -> list[tuple[int, Grid, int]]:
    """``(first token, grid, share)`` of every grid that gets some of ``k``, in proportion to the grids' sizes."""
    sizes = [height * width for height, width in grids]
    starts = itertools.accumulate(sizes, initial=0)
    return [part for part in zip(starts, grids, shares(k, sizes), strict=False) if part[2]]


def anchors(grids: Sequence[Grid], k: int) -> Tensor:
    """``[k]`` indices, ascending: of each of k blocks of the grids, the token nearest its middle."""
    return torch.tensor(
        [
            start + block.anchor(grid[1])
            for start, grid, share in divided(grids, k)
            for block in blocks(grid, share)
        ]
    )


def _stretch(grid: Grid, h: int, w: int) -> float:
    height, width = grid
    return max(height * w, width * h) / min(height * w, width * h)
