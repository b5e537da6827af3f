"""A count divided in proportion to sizes."""

from collections.abc import Sequence


def shares(count: int, sizes: Sequence[int], least: int = 0) -> list[int]:
    """How much of ``count`` each of ``sizes`` gets: in proportion, never more than the size itself.

    By largest remainders, ties to the first. Every size gets ``least`` at least, taken from those with most
    above their due.

    Args:
        count: ``len(sizes) * least <= count <= sum(sizes)``.
        sizes: of what is divided among, each ``least`` or more.
        least: what each must get.
    """
    total = sum(sizes)
    due = [count * size / total for size in sizes]
    found = [max(least, int(part)) for part in due]
    while sum(found) < count:
        room = [index for index, size in enumerate(sizes) if found[index] < size]
        found[max(room, key=lambda index: due[index] - found[index])] += 1
    while sum(found) > count:
        spare = [index for index in range(len(sizes)) if found[index] > least]
        found[max(spare, key=lambda index: found[index] - due[index])] -= 1
    return found
