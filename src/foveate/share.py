"""A count divided in proportion to sizes."""

from collections.abc import Sequence


def shares(count: int, sizes: Sequence[int], least: Sequence[int] | None = None) -> list[int]:
    """How much of ``count`` each of ``sizes`` gets: in proportion, never more than the size itself.

    By largest remainders, ties to the first. Every size gets its ``least`` at any rate, taken from those with
    most above their due.

    Args:
        count: ``sum(least) <= count <= sum(sizes)``.
        sizes: of what is divided among, each its ``least`` or more.
        least: what each must get; None for 0.
    """
    floor = [0] * len(sizes) if least is None else list(least)
    total = sum(sizes)
    due = [count * size / total for size in sizes]
    found = [max(minimum, int(part)) for minimum, part in zip(floor, due, strict=True)]
    while sum(found) < count:
        room = [index for index, size in enumerate(sizes) if found[index] < size]
        found[max(room, key=lambda index: due[index] - found[index])] += 1
    while sum(found) > count:
        spare = [index for index in range(len(sizes)) if found[index] > floor[index]]
        found[max(spare, key=lambda index: found[index] - due[index])] -= 1
    return found
