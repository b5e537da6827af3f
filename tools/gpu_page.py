"""Write docs/gpu/performance.md from the stores in docs/gpu/data, which `foveate bench speed --out` left.

python tools/gpu_page.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from foveate.bench.quality.cells import table
from foveate.bench.speed.cells import milliseconds, share, size, speedup
from foveate.bench.speed.contestants import STOCK, WHOLE, Contestant
from foveate.bench.speed.store import Store, Timed, Weighed
from foveate.bench.speed.summary import PAYS, summarise
from foveate.bench.speed.tables import COLUMNS

FOLDER = Path("docs/gpu")
STORES = ("l15", "b8", "b16", "next", "qwen")
COMMIT = "9d0fc65"  # the package of this commit has the hash that the stores give as their code
LABELS = {STOCK: "all tokens, stock", WHOLE: "all tokens, our path"}
BEGIN = "<!-- written by tools/gpu_page.py -->\n"


def main() -> None:
    page = FOLDER / "performance.md"
    by_hand = page.read_text(encoding="utf-8").split(BEGIN)[0]
    page.write_text(by_hand + BEGIN + written(), encoding="utf-8")


def written() -> str:
    summaries = [summarised(FOLDER / "data" / f"{name}.jsonl") for name in STORES]
    parts = [machine(summaries), *map(section, summaries), engine()]
    return "\n\n".join(parts) + "\n"


def summarised(path: Path) -> dict:
    """A store's summary: contestants that passed in fewer rounds than stock are left out, and named."""
    settings, *entries = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    store = Store(settings)
    for entry in entries:
        store.add(Timed(**entry) if "round" in entry else Weighed(**entry))
    (case,) = {case for case, _ in store.weighed}
    found = [contestant(key) for _, key in store.weighed]
    rounds = {one.key: len(store.rounds(case, [one.key])) for one in found}
    whole = [one for one in found if rounds[one.key] == rounds[STOCK]]
    left_out = [f"{one.label} ({rounds[one.key]} round)" for one in found if one not in whole]
    return summarise(whole, [case], store, {**settings, "store": path.name, "left_out": left_out})


def contestant(key: str) -> Contestant:
    """Of the key alone, such as ``SPARE(beta=0.25, ...) 64``: nothing runs here."""
    if key in LABELS:
        return Contestant(key, LABELS[key], key, None, None)
    name, _, rest = key.partition("(")
    keep = rest.rpartition(" ")[2]
    number = float(keep) if "." in keep else int(keep)
    return Contestant(key, f"{name} {keep}", name.casefold(), number, None)


def machine(summaries: list[dict]) -> str:
    contexts = [summary["context"] for summary in summaries]
    told = {json.dumps([c["machine"], c["versions"], c["code"], c["dtype"], c["attention"]]) for c in contexts}
    ((device, versions, code, dtype, attention),) = map(json.loads, told)
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    return (
        f"All of it is of commit {COMMIT} (code {code}): {device}; {packages}; {dtype}, {attention} attention, "
        "random weights at real dimensions, 64 tokens of text. Times are medians with quartiles, in ms. Ratios "
        "are taken within a round; their intervals are between order statistics, and *faster* or *slower* is said "
        "only where one of 95 % or more leaves out 1. [docs/performance.md](../performance.md) says where the "
        "stages are cut."
    )


def section(summary: dict) -> str:
    context, (case,) = summary["context"], summary["cases"]
    store, model = context["store"], re.match(r"\S+", context["model"])[0]
    times = [
        [row["label"], *(milliseconds(row["seconds"][name], spread=True) for name in (*COLUMNS, *PAYS))]
        for row in case["rows"]
    ]
    ratios = [
        [
            row["label"],
            *(speedup(None if row["key"] == STOCK else row["speedup"][name]) for name in ("prefill", *PAYS)),
            share(row["select_of_prefill"]),
            size(row["kv_bytes"]),
            size(row["memory"]),
        ]
        for row in case["rows"]
    ]
    needs = ("select, of its prefill", "KV cache", "memory")
    rounds = f"{case['repeats']} rounds (intervals of {case['confidence']:.0%})"
    left_out = f" Left out: {', '.join(context['left_out'])}." if context["left_out"] else ""
    return "\n\n".join(
        [
            f"## {model}: {case['tokens']} visual tokens, batch {case['batch']}",
            f"[{store}](data/{store}): {rounds}, {context['new_tokens']} new tokens.{left_out}",
            table(["arm", *COLUMNS.values(), "first token", "end to end"], times),
            "Times as fast as stock, and what is needed:",
            table(["arm", "prefill", "to the first token", "end to end", *needs], ratios),
        ]
    )


def engine() -> str:
    name, *rows = (FOLDER / "data" / "engine.txt").read_text(encoding="utf-8").strip().splitlines()
    return "\n\n".join(
        [
            "## The selection engine alone",
            f"{name}, the same commit; medians in ms, printed by `tools/engine_times_gpu.py`. *Ours* is one "
            "image, *32 at once* 32 images in one call, *1 step* one of the k steps, one after another.",
            "\n".join(rows),
        ]
    )


if __name__ == "__main__":
    main()
