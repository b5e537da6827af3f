"""The summary as a table for a terminal and, of the same cells, for a page."""

from typing import Any

from rich.table import Table

from foveate.bench.quality.cells import DASH
from foveate.bench.speed.cells import milliseconds, share, speedup
from foveate.bench.tables import plain_table

COLUMNS = (
    "arm",
    "at a time",
    "requests/s",
    "of no pruning",
    "first token, ms",
    "of no pruning",
    "per token, ms",
    "of no pruning",
    "prompt tokens",
    "prefix found",
    "images found",
)


def cells(row: dict[str, Any]) -> list[str]:
    """Of one arm, at one number of requests at a time."""
    stock = row["options"] is None
    ratios = {name: DASH if stock else speedup(found) for name, found in row["better"].items()}
    found = [DASH if value is None else share(value) for value in row["found"].values()]
    return [
        row["label"],
        str(row["concurrency"]),
        f"{row['requests_per_second']['median']:.3g}",
        ratios["requests_per_second"],
        milliseconds(row["first_token"]),
        ratios["first_token"],
        milliseconds(row["per_token"]) if row["per_token"]["median"] else DASH,
        ratios["per_token"],
        f"{row['prompt']:.0f}",
        *found,
    ]


def serve_table(data: dict[str, Any]) -> Table:
    """One row per arm and number of requests at a time."""
    table = plain_table(COLUMNS[0], title=f"medians of {data['context']['rounds']} rounds")
    for name in COLUMNS[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in data["rows"]:
        table.add_row(*cells(row))
    return table


def context_line(data: dict[str, Any]) -> str:
    """What was measured, and on what, in one line."""
    context, load = data["context"], data["context"]["load"]
    versions = ", ".join(f"{name} {number}" for name, number in context["versions"].items())
    commits = f", commit {', '.join(context['commits'])}" if context["commits"] else ""
    width, height = load["size"]
    levels = " or ".join(map(str, context["concurrency"]))
    about = "once" if load["questions"] == 1 else f"{load['questions']} times"
    return (
        f"{context['model']} on vLLM {context['vllm']}; per round {load['images']} pictures of {width} x {height} "
        f"pixels, each asked about {about}, {levels} at a time, "
        f"{load['new_tokens']} new tokens; {context['rounds']} rounds (intervals of "
        f"{100 * context['confidence']:.0f} %); asked from {versions}{commits}."
    )
