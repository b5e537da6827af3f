"""Write the tables of docs/estimate.md: GPUs, and estimates beside what was measured.

python tools/estimate_page.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from foveate.bench.estimate import GPUS, Case, Device, Sizes, cost, gpu
from foveate.bench.estimate.gpus import ARITHMETIC, BANDWIDTH, LAYER
from foveate.bench.quality.cells import DASH, table

PAGE = Path("docs/estimate.md")
MEASURED = Path(__file__).parent.parent / "tests" / "golden" / "stages.json"
sizes_of = cache(Sizes.of)
STAGES = ("tower", "prefill", "decode", "choosing")
EXAMPLE = "llava-1.5-7b"


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, written in (("gpus", gpus_table()), ("constants", constants()), ("check", check())):
        before, rest = text.split(f"<!-- {name} -->\n")
        text = f"{before}<!-- {name} -->\n{written}\n<!-- end -->{rest.split('<!-- end -->', 1)[1]}"
    PAGE.write_text(text, encoding="utf-8")


def compared() -> Iterator[tuple[dict, dict[str, tuple[float, float]]]]:
    """Each measured row, and by stage what was estimated and what was measured.

    The cache is in bytes, and ``sooner`` how many times as soon as stock's the first token comes.
    """
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    stock = {_prompt(row): _first_token(row) for row in measured["rows"] if row["arm"] == "stock"}
    devices = {name: Device(**figures) for name, figures in measured["devices"].items()}
    for row in measured["rows"]:
        device = devices.get(row["device"]) or gpu(row["device"])
        sizes, case = sizes_of(row["model"]), Case(row["batch"], row["tokens"], row["kept"], row["text"])
        found = cost.stages(sizes, device, case)
        pairs = {name: (1000 * found[name].seconds, row[name]) for name in STAGES}
        pairs["cache"] = (cost.cached(sizes, case, row["new_tokens"]) * device.bytes, row["kv_bytes"])
        pairs["sooner"] = (cost.sooner(sizes, device, case), stock[_prompt(row)] / _first_token(row))
        yield row, pairs


def within_a_third(estimated: float, measured: float) -> bool:
    return 2 / 3 <= estimated / measured <= 4 / 3 if measured else estimated == 0


def check() -> str:
    rows, off = [], 0
    for row, pairs in compared():
        off += sum(not within_a_third(*pairs[name]) for name in (*STAGES[:3], "cache"))
        arm = f"{row['arm']}, {row['kept']} of {row['tokens']}"
        cells = [_cell(pairs[name]) for name in (*STAGES, "sooner")]
        cache = f"{pairs['cache'][0] / pairs['cache'][1]:.2f}x"
        rows.append([row["device"], row["model"], str(row["batch"]), arm, *cells, cache])
    sources = json.loads(MEASURED.read_text(encoding="utf-8"))["source"]
    told = " ".join(f"{name}: {source}." for name, source in sources.items())
    header = ["device", "model", "batch", "arm", *STAGES, "sooner", "cache"]
    return (
        "Estimated / measured, in ms, and how many times as soon as stock's the first token comes; of the cache "
        f"the ratio of bytes. Bold is off by more than a third: {off} of the {4 * len(rows)} values of tower, "
        f"prefill, decode and cache are. {told}\n\n{table(header, rows)}"
    )


def gpus_table() -> str:
    rows = []
    for name, sheet in GPUS.items():
        device, sizes, case = gpu(name), sizes_of(EXAMPLE), Case(1, 576, 64)
        batch, tokens = cost.pays_from_batch(sizes, device, case), cost.pays_from_tokens(sizes, device, case)
        figures = [f"{sheet.tflops:g}", f"{sheet.gb_per_s:g}", str(sheet.gb)]
        ratio = f"{cost.sooner(sizes, device, case):.2f}x"
        rows.append([name, *figures, ratio, *(DASH if n is None else f"from {n}" for n in (batch, tokens)),
                     sheet.source])  # fmt: skip
    header = ["GPU", "TFLOP/s", "GB/s", "GB", "64 of 576", "batch", "tokens", "figures from"]
    return table(header, rows)


def constants() -> str:
    return (
        f"{ARITHMETIC:.0%} of a sheet's arithmetic, {BANDWIDTH:.0%} of its bandwidth, {1000 * LAYER:g} ms to "
        f"launch a decoder layer, {cost.TOWER_LAYER:g} of that for a layer of the tower, {cost.WINDOW:g} for each "
        f"attention window, and {cost.CHOOSING:g} for choosing."
    )


def _prompt(row: dict) -> tuple[str, int, int]:
    return row["model"], row["batch"], row["tokens"]


def _first_token(row: dict) -> float:
    return row["tower"] + row["choosing"] + row["prefill"]


def _cell(pair: tuple[float, float]) -> str:
    text = " / ".join(f"{value:.0f}" if value > 100 else f"{value:.3g}" for value in pair)
    return text if within_a_third(*pair) else f"**{text}**"


if __name__ == "__main__":
    main()
