"""The summary as tables for a terminal."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from foveate.bench.speed.cells import added, layers, milliseconds, size, speedup
from foveate.bench.tables import plain_table

COLUMNS = {"encode": "encode", "select": "select", "prefill": "prefill", "decode_per_token": "decode/token"}


def speed_tables(data: dict[str, Any]) -> Iterator[Table]:
    """One table per case: medians in ms, and speed-ups against stock with their intervals."""
    for case in data["cases"]:
        title = (
            f"{case['tokens']} visual tokens, batch {case['batch']}: ms, median of {case['repeats']}; times as "
            "fast as stock (interval of the median)"
        )
        table = plain_table("arm", title=title)
        for name in (*COLUMNS.values(), "first token", "end to end"):
            table.add_column(name, justify="right", no_wrap=True)
        for name in ("to the first token", "end to end", "memory", "KV cache"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("pruning adds", no_wrap=True)
        table.add_column("visual tokens", no_wrap=True)
        for row in case["rows"]:
            stock = row["key"] == case["rows"][0]["key"]
            times = [milliseconds(row["seconds"][name]) for name in (*COLUMNS, "first_token", "end_to_end")]
            ratios = ["" if stock else speedup(row["speedup"][name]) for name in ("first_token", "end_to_end")]
            sizes = [size(row["memory"]), size(row["kv_bytes"])]
            table.add_row(row["label"], *times, *ratios, *sizes, added(row), layers(row["tokens_per_layer"]))
        yield table


def context_line(data: dict[str, Any]) -> str:
    """What was measured, and on what, in one line."""
    context = data["context"]
    versions = ", ".join(f"{name} {number}" for name, number in context["versions"].items())
    commits = f", commit {', '.join(context['commits'])}" if context["commits"] else ""
    load = ""
    if context["load"]:
        low, high = context["load"]
        load = f", load average {low:g}–{high:g}"
    interval = f"{context['repeats']} repeats (intervals of {100 * context['confidence']:.0f} %)"
    return (
        f"{context['model']}, {context['dtype']}, {context['attention']} attention, {context['new_tokens']} new "
        f"tokens, {interval}; {context['machine']}{load}; {versions}, code {context['code']}{commits}; "
        f"memory: {context['memory']}."
    )
