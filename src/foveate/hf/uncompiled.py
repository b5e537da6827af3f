"""Functions that torch.compile leaves alone."""

from collections.abc import Callable
from typing import TypeVar, cast

import torch

Function = TypeVar("Function", bound=Callable[..., object])


def uncompiled(function: Function) -> Function:
    """The same function, never traced: tracing what depends on values costs far more than it saves.

    Call it where the function is about to be used, not as a decorator: it loads torch's compiler.
    """
    return cast("Function", torch.compiler.disable(function))  # type: ignore[no-untyped-call]
