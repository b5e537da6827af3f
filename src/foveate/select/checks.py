"""Checks of values that lie on a device: read at once, or collected and read together.

A read makes the host wait for all that a GPU has queued. A direct call of this package is told of a bad value at
once. Inside `deferred` the checks are collected, and `Checks.raise_any` reads them as one tensor; until then the
computation goes on, with values that may mean nothing, but with indices in range.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Undecided(Exception):
    """Rounding could change a choice that was made without the host: outside `deferred` it is made with it."""


class Checks:
    """The checks collected in one block, in the order in which they arose."""

    def __init__(self) -> None:
        self._flags: list[Tensor] = []
        self._errors: list[Callable[[], Exception]] = []

    def add(self, bad: Tensor, error: Callable[[], Exception]) -> None:
        """Collect a check: ``bad``, bools of any shape, refuses with ``error`` where any is true."""
        self._flags.append(bad.any() if bad.dim() else bad)
        self._errors.append(error)

    def raise_any(self) -> None:
        """Read all flags in one go, and raise the first error that holds."""
        if not self._flags:
            return
        device = max((flag.device for flag in self._flags), key=lambda device: device.type != "cpu")
        holds = torch.stack([flag.to(device) for flag in self._flags]).tolist()
        errors = [error for error, bad in zip(self._errors, holds, strict=True) if bad]
        self._flags, self._errors = [], []
        if errors:
            raise errors[0]()


# A context variable, for a thread or task that defers must not collect the checks of another.
_collecting: ContextVar[Checks | None] = ContextVar("collecting", default=None)


@contextmanager
def deferred() -> Iterator[Checks]:
    """A block whose checks are collected in the `Checks` given; the caller has to call `Checks.raise_any`."""
    checks = Checks()
    token = _collecting.set(checks)
    try:
        yield checks
    finally:
        _collecting.reset(token)


def is_deferred() -> bool:
    """Whether checks are collected here."""
    return _collecting.get() is not None


def refuse_if(bad: Tensor, error: Callable[[], Exception]) -> None:
    """Raise ``error()`` where any of ``bad`` is true: at once, or inside `deferred` when the checks are read.

    Args:
        bad: bools of any shape, on any device.
        error: what makes the error; it is called where it is raised alone, and may read values.
    """
    checks = _collecting.get()
    if checks is not None:
        checks.add(bad, error)
    elif bool(bad.any()):
        raise error()


def read_together(work: Callable[[], T]) -> T:
    """What ``work()`` returns, all its checks read as one; done again outside `deferred` where it is `Undecided`.

    Raises:
        Exception: the first check that refuses, or what ``work`` raises.
    """
    try:
        with deferred() as checks:
            result = work()
        checks.raise_any()
    except Undecided:
        return work()
    return result


def is_no_selection(order: Tensor, n: int) -> Tensor:
    """``[...]`` bool: which of ``order [..., k]`` hold an index twice, or one outside 0 to ``n - 1``."""
    ascending = order.sort(dim=-1).values
    outside = (ascending[..., 0] < 0) | (ascending[..., -1] >= n)
    return outside | (ascending.diff(dim=-1) == 0).any(dim=-1)
