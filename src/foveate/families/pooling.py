"""Scores, or keys, of patches averaged over the patches that a token is made of."""

from torch import Tensor


def pooled(scores: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """``[h * w, ...]``: means of blocks of ``scores [height * width, ...]``, as large as the grid holds of them.

    Patches left over at the right and at the bottom are in no token.

    Args:
        scores: of patches, in raster order.
        grid: ``(height, width)`` in patches.
        size: ``(h, w)`` in tokens.
    """
    (height, width), (h, w) = grid, size
    down, across = height // h, width // w
    rest = scores.shape[1:]
    blocks = scores.reshape(height, width, *rest)[: h * down, : w * across].reshape(h, down, w, across, *rest)
    return blocks.mean(dim=(1, 3)).flatten(0, 1)
