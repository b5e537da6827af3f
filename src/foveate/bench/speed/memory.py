"""The most memory that is in use at once in a block, above what was in use before it.

CUDA: what torch's allocator has handed out. CPU, on Linux: the resident set, whose high-water mark the kernel
takes back on request, after memory that was freed before has been returned to it. Elsewhere it is not measured.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
TAKE_BACK = "5"  # proc(5): the peak resident set size is set to what it is now
HOW = {"cuda": "torch.cuda.max_memory_allocated", "cpu": "VmHWM of the process (Linux)"}
NOT_MEASURED = "not measured"


@dataclass
class Peak:
    """What was found.

    Attributes:
        growth: bytes at most in use, above those before; None inside the block, or where it is not measured.
    """

    growth: int | None = None


@contextmanager
def peak(device: torch.device) -> Iterator[Peak]:
    """Measure what the block needs."""
    found = Peak()
    before = _reset(device)
    yield found
    if before is not None:
        found.growth = max(0, _highest(device) - before)


def how(device: torch.device) -> str:
    """What `peak` reads on a device, in words."""
    return HOW[device.type] if _reset(device) is not None else NOT_MEASURED


def _reset(device: torch.device) -> int | None:
    """Forget the peak; bytes in use now, or None where that cannot be."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if device.type != "cpu" or not STATUS.exists():
        return None
    try:
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR.write_text(TAKE_BACK)
    except (OSError, AttributeError):  # not allowed here, or another C library
        return None
    return _status("VmRSS")


def _highest(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def _status(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
