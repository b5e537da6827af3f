"""Times `select_residual` on a GPU against the Gram loop as its users write it in torch: a Markdown table.

    PYTHONPATH=src python tools/engine_times_gpu.py

Milliseconds are medians of whole calls between device events, the synchronisation at their end included; all
rivals run in turn within a round. "1 step" is one of the k dependent steps: the time of k less that of one row.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from engine_times import KINDS, by_gram_loop, image, noise
from foveate.select import select_residual

CELLS = ((576, 4096, 64), (1296, 3584, 192), (2880, 4096, 320))
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def milliseconds(run: Callable[[], object], device: str) -> float:
    """One call, by device events where there are any."""
    if device == "cpu":
        start = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def measured(rows: Tensor, k: int, batch: int, repeats: int) -> dict[str, float]:
    """Median milliseconds of every rival, after a first round that compiles."""
    many, device = rows.expand(batch, *rows.shape).contiguous(), rows.device.type
    rivals: dict[str, Callable[[], object]] = {
        "ours": lambda: select_residual(rows, k, impl="triton"),
        f"{batch} at once": lambda: select_residual(many, k, impl="triton"),
        "one row": lambda: select_residual(rows, 1, impl="triton"),
        "Gram loop": lambda: by_gram_loop(rows, k),  # in the dtype of the rows, as they come
        "Gram loop fp32": lambda: by_gram_loop(rows.float(), k),
        "reference": lambda: select_residual(rows, k, impl="reference"),
    }
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for number in range(repeats + 1):
        for name, rival in rivals.items():
            spent = milliseconds(rival, device)
            if number:
                times[name].append(spent)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Print a line per shape, kind of rows and dtype."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--only", nargs="+", help="cells such as 576x4096x64; the bars' by default")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=["bf16"])
    arguments = parser.parse_args()
    cells = [tuple(map(int, cell.split("x"))) for cell in arguments.only] if arguments.only else CELLS
    print(torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU, Triton's interpreter: no times")
    columns = ["ours", "Gram loop", "Gram loop fp32", "reference", f"{arguments.batch} at once"]
    print("| rows | dtype | N x D | k | " + " | ".join(columns) + " | 1 step, us |\n" + "|---" * 10 + "|")
    for n, d, k in cells:
        for kind in KINDS:
            for name in arguments.dtypes:
                rows = {"image": image, "noise": noise}[kind](n, d).to(arguments.device, DTYPES[name])
                times = measured(rows, k, arguments.batch, arguments.repeats)
                step = 1000 * (times["ours"] - times["one row"]) / max(1, k - 1)
                shown = " | ".join(f"{times[column]:.3f}" for column in columns)
                print(f"| {kind} | {name} | {n} x {d} | {k} | {shown} | {step:.2f} |", flush=True)


if __name__ == "__main__":
    main()
