"""Functions that torch.compile must not trace, without loading the compiler where nothing is compiled."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function, run as it is in a model that is compiled, too.

    `torch.compiler.disable` does the same, but loads torch._dynamo where it is written: a second that programs pay
    which never compile. While that module is not loaded, nothing can be tracing.
    """
    disabled: list[Callable[P, R]] = []

    @wraps(function)
    def run(*arguments: P.args, **options: P.kwargs) -> R:
        if "torch._dynamo" not in sys.modules:
            return function(*arguments, **options)
        if not disabled:
            disabled.append(torch.compiler.disable(function))  # type: ignore[no-untyped-call]
        return disabled[0](*arguments, **options)

    return run
