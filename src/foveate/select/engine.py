"""How an engine runs: without gradients, and with the dtypes and devices that it names itself."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

DEVICES = ("cpu", "cuda", "mps", "xpu")


def without_autocast(work: Callable[P, R]) -> Callable[P, R]:
    """``work``, in which `torch.autocast` changes no dtype: half precision would keep other tokens."""

    @wraps(work)
    def precise(*args: P.args, **options: P.kwargs) -> R:
        with ExitStack() as stack:
            for device in DEVICES:
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            return work(*args, **options)

    return precise


def on_host_unless_told(work: Callable[P, R]) -> Callable[P, R]:
    """``work``, in which tensors made without a device are on the host: `torch.set_default_device` aside."""

    @wraps(work)
    def placed(*args: P.args, **options: P.kwargs) -> R:
        if torch.get_default_device().type == "cpu":
            return work(*args, **options)
        with torch.device("cpu"):
            return work(*args, **options)

    return placed


def engine(work: Callable[P, R]) -> Callable[P, R]:
    """``work``, without gradients and without `torch.autocast`."""
    return torch.no_grad()(without_autocast(work))
