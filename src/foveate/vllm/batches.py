"""How many images the encoder is given at once."""

from collections.abc import Sequence


def batches(sizes: Sequence[int], budget: int) -> list[tuple[int, int]]:
    """``(start, stop)`` of runs of images with at most ``budget`` tokens together, or one image that has more.

    vLLM's scheduler counts the tokens that are kept, so that it sends several times more images than its budget
    for the encoder means.

    Args:
        sizes: tokens of each image before pruning.
        budget: the scheduler's, of one step.
    """
    found: list[tuple[int, int]] = []
    start = total = 0
    for index, size in enumerate(sizes):
        if index > start and total + size > budget:
            found.append((start, index))
            start, total = index, 0
        total += size
    return [*found, (start, len(sizes))] if sizes else []
