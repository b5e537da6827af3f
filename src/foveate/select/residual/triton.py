"""`select_residual` on a GPU: the Gram matrix and the dependent steps in one launch for all images of a batch.

A panel of steps needs no word from the host (`kernel.py`): a budget of up to ``PANEL`` rows is one launch,
a larger one a launch per panel. The kernel stops an image where rounding could change a choice, where squares
over- or underflow, and at NaN. Only then does the host look at it: it raises, or takes what was kept out of the
rows and runs the kernel on what is left. It learns of it by one read at the end; inside `checks.deferred` it reads
nothing, and such a choice is `Undecided` when the checks are read.
"""

import functools
import subprocess
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from foveate.errors import InvalidOption
from foveate.select.checks import Undecided, is_deferred, refuse_if
from foveate.select.residual.kernel import select_kernel
from foveate.select.residual.remainder import Remainder
from foveate.select.residual.rows import DOUBT, RANK_TOLERANCE, TIE_TOLERANCE, filled, relative, scaled

INTERPRETED = not isinstance(select_kernel, triton.JITFunction)  # TRITON_INTERPRET=1 set early
MOST_ROWS = 16384  # one program holds them in registers
WORKSPACE = 2**31  # bytes of Gram matrices at once
LOWEST = (3, 4)  # of Triton
FAILURES = (triton.TritonError, RuntimeError)  # of its compiler, the driver, the GPU's memory
TYPES = {
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


class Plan(NamedTuple):
    """How the work on ``N`` rows is cut: by ``N`` and dtype alone, so that no budget or batch changes a sum."""

    tile: int  # rows and columns of the matrix per program
    chunk: int  # columns of the features at once
    panel: int  # steps per launch: a step reads the panel so far, a launch reads and writes the matrix
    lines: int  # rows of the factor at once
    warps: int


def fault(features: Tensor) -> str | None:
    """Why this implementation cannot run on these features; None where it can."""
    if tuple(map(int, triton.__version__.split(".")[:2])) < LOWEST:
        return f"Triton {triton.__version__}: allowed is {'.'.join(map(str, LOWEST))} or newer"
    if features.shape[-2] > MOST_ROWS:
        return f"{features.shape[-2]} rows: allowed are up to {MOST_ROWS}"
    if features.device.type == "cuda":
        return _fault_of_device(features.device)
    if features.device.type == "cpu" and INTERPRETED:
        return None
    return f"features on {features.device}: allowed is a GPU that Triton compiles for"


def select_by_triton(features: Tensor, k: int, weight: Tensor | None, first: Tensor | None) -> Tensor:
    """``[B, k]`` indices for ``[B, N, D]`` features, ``[B, N]`` weights and ``[B]`` rows to start with.

    Raises:
        InvalidFeatures: NaN or infinite values.
        InvalidOption: the kernel needs more than the GPU has.
    """
    features = features.detach()
    if features.dtype not in TYPES:
        features = features.float()
    weights = None if weight is None else relative(weight, features)
    steps = min(k, features.shape[-1])  # more rows than columns explain all
    found = _orders(features, steps, weights, first, by_length=True)
    if is_deferred() and steps == k:
        refuse_if(found[:, -1] != k, lambda: Undecided("an image holds rows that the kernel cannot tell apart"))
        return found[:, :k].contiguous()
    counts = found[:, -1].tolist()  # the one synchronisation
    if all(count == k for count in counts):
        return found[:, :k].contiguous()

    def finished(item: int) -> Tensor:
        start = [] if first is None else [int(first[item])]
        order = found[item, : counts[item]].tolist() or start
        return _finished(features[item], order, k, None if weight is None else weight[item])

    return torch.stack([found[b, :k] if count == k else finished(b) for b, count in enumerate(counts)])


def _finished(features: Tensor, order: list[int], k: int, weight: Tensor | None) -> Tensor:
    """An image the kernel stopped at: what it kept is taken out of all rows, which start at length 1 again."""
    rows, norms = scaled(features)
    weights = relative(weight, rows)
    left = Remainder(rows, norms)
    free, taken = weights * left.magnitude, 0
    while len(order) < k:
        kept = torch.tensor(order[taken:], dtype=torch.long, device=rows.device)
        free[kept], taken = 0, len(order)
        free *= left.take_out(kept)
        if not bool(free.amax() > 0):
            break
        free /= free.amax()
        unit = left.rows * left.inverse[:, None]
        found = _orders(unit[None], min(k - taken, rows.shape[1]), free.double()[None], None, by_length=False)
        *more, count = found[0].tolist()
        order = order + more[:count]
    return filled(order, weights, k)


def _orders(features: Tensor, k: int, weights: Tensor | None, first: Tensor | None, by_length: bool) -> Tensor:
    """``[B, k + 1]``: rows in order of selection, and how many of them are certain."""
    n = features.shape[1]
    at_once = max(1, min(WORKSPACE // (_summed(features).itemsize * n * _pitch(n)), 65535))
    try:
        parts = [
            _launch(
                features[at : at + at_once],
                k,
                None if weights is None else weights[at : at + at_once],
                None if first is None else first[at : at + at_once],
                by_length,
            )
            for at in range(0, len(features), at_once)
        ]
    except FAILURES as error:
        allowed = "allowed here are auto, reference"
        raise InvalidOption(f"impl='triton' cannot run: {_line(error)}; {allowed}") from error
    return torch.cat(parts) if len(parts) != 1 else parts[0]


def _launch(features: Tensor, k: int, weights: Tensor | None, first: Tensor | None, by_length: bool) -> Tensor:
    batch, n, d = features.shape
    dtype = _summed(features)
    plan, eps, pitch = _plan(n, features.dtype), torch.finfo(dtype).eps, _pitch(n)
    starts = range(0, k, plan.panel)
    orders = torch.zeros(batch, k + 1, dtype=torch.long, device=features.device)  # in range where it stops
    arrived = torch.zeros(len(starts), batch, dtype=torch.int32, device=features.device)
    gram, factor, state = (
        torch.empty(batch, lines, pitch, dtype=dtype, device=features.device) for lines in (n, plan.panel, 3)
    )
    tiles = -(-n // plan.tile)
    constants: dict[str, Any] = {
        **{"HAS_WEIGHT": weights is not None, "HAS_FIRST": first is not None, "BY_LENGTH": by_length},
        **{"OPERAND": tl.float32 if INTERPRETED and dtype == torch.float32 else TYPES[features.dtype]},
        **{"SUM": TYPES[dtype], "TIE": TIE_TOLERANCE * eps, "DOUBT": eps**DOUBT, "LOST": RANK_TOLERANCE * eps},
        **{"TILE": plan.tile, "CHUNK": plan.chunk, "PANEL": plan.panel, "ROWS": plan.lines},
        **{"BLOCK": max(128, triton.next_power_of_2(n)), "num_warps": plan.warps, "enable_fp_fusion": True},
    }
    weights = orders if weights is None else weights.contiguous()  # any address where there is none
    first = orders if first is None else first.contiguous()
    tensors = (features, weights, first, gram, factor, state, orders, arrived)
    with torch.cuda.device(features.get_device()):
        for start in starts:
            select_kernel[(tiles * (tiles + 1) // 2, batch)](
                *tensors,
                *(n, d, pitch, start, k, *features.stride()),
                FRESH=start == 0,
                **constants,
            )
    return orders


def _summed(features: Tensor) -> torch.dtype:
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def _pitch(n: int) -> int:
    return -(-n // 16) * 16


def _plan(n: int, dtype: torch.dtype) -> Plan:
    if dtype == torch.float64:
        return Plan(32, 16, 32, 4, 8)
    chunk = 32 if dtype == torch.float32 else 64
    return Plan(64, chunk, 64, 16, 8) if n <= 1024 else Plan(128, chunk, 32, 8, 16)


def _fault_of_device(device: torch.device) -> str | None:
    """Try one row: the compiler's own needs (a C compiler, a driver, a known GPU) fail in their own ways."""
    try:
        return _fault_of_compiler(device)
    except torch.OutOfMemoryError as error:  # passes, so it is not remembered
        return f"no memory on {device} ({_line(error)})"


@functools.cache
def _fault_of_compiler(device: torch.device) -> str | None:
    try:
        _launch(torch.ones(1, 1, 1, device=device), 1, None, None, True)
    except torch.OutOfMemoryError:
        raise
    except (*FAILURES, OSError, subprocess.CalledProcessError) as error:
        return f"Triton failed on {device} ({_line(error)})"
    return None


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
