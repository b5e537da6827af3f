"""Times `select_residual` on a CPU against what else gives the same rows: a Markdown table.

    python tools/engine_times.py --out build/engine.jsonl --page docs/engine.md

Each cell of the grid runs all of them in turn, several times, and appends a line to ``--out``; a second run
measures only the cells that are missing there. Ratios hold on a busy machine too, single times do not.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy
import scipy.linalg
import torch
from torch import Tensor

from foveate.bench.lines import add_line, read_lines
from foveate.bench.machine import code, commit, machine, versions
from foveate.select import select_residual

SHAPES = ((576, 4096), (1296, 3584), (2880, 4096))
COUNTS = (32, 64, 192, 320)
KINDS = ("image", "noise")
BEGIN, END = "<!-- tools/engine_times.py -->", "<!-- end -->"
REST = 0.3  # seconds: threads of OpenBLAS (geqp3, pstrf) spin for about 0.1 s after their work, beside the next


def image(n: int, d: int) -> Tensor:
    """Rows like an encoder's: smooth over the grid, a common part, noise, and a few of 20 times the length."""
    generator = torch.Generator().manual_seed(0)
    side = int(n**0.5) + 1
    coarse = torch.randn(1, 256, max(4, side // 4), max(4, side // 4), generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")[0].reshape(256, -1).T[:n]
    rows = fine @ torch.randn(256, d, generator=generator) / 16
    rows += 0.3 * torch.randn(n, d, generator=generator) + 0.5 * torch.randn(1, d, generator=generator)
    rows[torch.randint(0, n, (5,), generator=generator)] *= 20
    return rows


def noise(n: int, d: int) -> Tensor:
    """Rows that have nothing in common: all energies stay close together."""
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


def by_deflation(rows: Tensor, k: int) -> list[int]:
    """(a) The textbook: take the chosen direction out of the whole residual matrix."""
    residual, order = rows.clone(), []
    for _ in range(k):
        index = int(torch.linalg.vector_norm(residual, dim=1).argmax())
        direction = residual[index] / residual[index].norm()
        residual.addr_(residual @ direction, direction, alpha=-1)
        residual[index] = 0
        order.append(index)
    return order


def by_pivoted_qr(rows: Tensor, k: int) -> list[int]:
    """(b) LAPACK geqp3, which cannot stop after k columns."""
    pivots = scipy.linalg.lapack.sgeqp3(rows.numpy().T.copy(order="F"), overwrite_a=True)[1]
    return (pivots[:k] - 1).tolist()


def by_gram_loop(rows: Tensor, k: int) -> list[int]:
    """(c) Fast greedy MAP of a determinantal point process (Chen et al. 2018), as its users write it in torch."""
    gram = rows @ rows.T
    energy, factor, order = gram.diagonal().clone(), gram.new_zeros(k, len(gram)), []
    for step in range(k):
        index = int(energy.argmax())
        share = (gram[index] - factor[:step, index] @ factor[:step]) / energy[index].sqrt()
        factor[step] = share
        energy -= share.square()
        energy[index] = -torch.inf
        order.append(index)
    return order


def by_pivoted_cholesky(rows: Tensor, k: int) -> list[int]:
    """(d) Gram matrix and LAPACK pstrf, which cannot stop after k columns either."""
    gram = (rows @ rows.T).numpy()
    pivots = scipy.linalg.lapack.spstrf(gram.T, lower=1, overwrite_a=True)[1]
    return (pivots[:k] - 1).tolist()


def by_columns(rows: Tensor, k: int) -> list[int]:
    """Ours."""
    return select_residual(rows, k).tolist()


RIVALS: dict[str, Callable[[Tensor, int], list[int]]] = {
    "ours": by_columns,
    "(a) deflation": by_deflation,
    "(b) geqp3": by_pivoted_qr,
    "(c) Gram loop": by_gram_loop,
    "(d) Gram + pstrf": by_pivoted_cholesky,
}


SLOW = ("(a) deflation", "(b) geqp3")  # in the first rounds alone
TOGETHER, IN_TURN = "4 at once", "4 in turn"  # what a batch costs, beside the same work without one


def measured(kind: str, n: int, d: int, k: int, repeats: int) -> dict:
    """Milliseconds of ours, how many times longer the others take, and on how many first rows all agree.

    Ratios are taken within a round, where all run one after the other, and are then their median. What runs
    first is a round that is not counted.
    """
    rows = {"image": image, "noise": noise}[kind](n, d)
    four = torch.stack([rows] * 4)
    rivals = {
        **RIVALS,
        TOGETHER: lambda _, count: select_residual(four, count).tolist()[0],
        IN_TURN: lambda _, count: torch.stack([select_residual(item, count) for item in four]).tolist()[0],
    }
    slow = 3 if n * k <= 576 * 64 else 1
    ratios: dict[str, list[float]] = {name: [] for name in rivals}
    ours, agree = [], k
    for number in range(repeats + 1):
        times, orders = {}, {}
        for name, rival in rivals.items():
            if name in SLOW and number > slow:
                continue
            time.sleep(REST)
            start = time.perf_counter()
            orders[name] = rival(rows, k)
            times[name] = 1000 * (time.perf_counter() - start)
        if number == 0:
            agree = min(_common(orders["ours"], order) for order in orders.values())
            continue
        ours.append(times["ours"])
        for name, taken in times.items():
            ratios[name].append(taken / times[IN_TURN if name == TOGETHER else "ours"])
    return {
        **{"kind": kind, "n": n, "d": d, "k": k, "ours_ms": statistics.median(ours), "fastest_ms": min(ours)},
        "ratios": {name: statistics.median(values) for name, values in ratios.items()},
        "rounds": {name: len(values) for name, values in ratios.items()},
        "agree": agree,
        "commit": commit(),
    }


def _common(one: list[int], other: list[int]) -> int:
    return int(np.cumprod(np.equal(one, other)).sum())


def table(settings: dict, cells: list[dict]) -> str:
    """Milliseconds of ours, and how many times longer the others take."""
    names = [*(name for name in RIVALS if name != "ours"), TOGETHER]
    versions = ", ".join(f"{name} {number}" for name, number in settings["versions"].items())
    commits = ", ".join(sorted({str(cell["commit"]) for cell in cells}))
    lines = [
        f"{settings['machine']}; {versions}; commit {commits}. Medians of {settings['repeats']} rounds, of (a) "
        "and (b) of 3 at 576 rows and k up to 64, else of 1; *same* is how many first rows all agree on.",
        "",
        "| rows | N x D | k | ours, ms | " + " | ".join(names) + " | same |",
        "|---" * (5 + len(names)) + "|",
    ]
    for cell in cells:
        ratios = " | ".join(f"{cell['ratios'][name]:.2f}x" for name in names)
        lines.append(
            f"| {cell['kind']} | {cell['n']} x {cell['d']} | {cell['k']} | {cell['ours_ms']:.1f} | {ratios} "
            f"| {cell['agree']} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure the cells that are missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("engine_times.jsonl"))
    parser.add_argument("--page", type=Path, help="a Markdown page, whose table is replaced")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--rows", choices=KINDS, nargs="+", default=list(KINDS))
    parser.add_argument("--only", nargs="+", help="shapes such as 576x4096; all by default")
    parser.add_argument("--k", type=int, nargs="+", default=list(COUNTS))
    arguments = parser.parse_args()
    wanted = [
        (kind, n, d, k)
        for n, d in SHAPES
        for k in arguments.k
        for kind in arguments.rows
        if not arguments.only or f"{n}x{d}" in arguments.only
    ]
    settings = {
        "machine": machine(torch.device("cpu")),
        "versions": {**versions(), "numpy": np.__version__, "scipy": scipy.__version__},
        "code": code(()),
        "repeats": arguments.repeats,
    }
    known = read_lines(arguments.out, settings, dict)
    cells = {(c["kind"], c["n"], c["d"], c["k"]): c for c in known}
    for position, cell in enumerate(wanted, start=1):
        print(f"{position}/{len(wanted)} {cell}{' (known)' * (cell in cells)}", file=sys.stderr, flush=True)
        if cell not in cells:
            cells[cell] = measured(*cell, arguments.repeats)
            add_line(arguments.out, cells[cell])
    text = table(settings, [cells[cell] for cell in wanted])
    print(text)
    if arguments.page:
        before, rest = arguments.page.read_text(encoding="utf-8").split(BEGIN)
        arguments.page.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
