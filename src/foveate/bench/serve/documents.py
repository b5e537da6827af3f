"""The page that a run leaves, with its plot."""

from pathlib import Path
from typing import Any

from foveate.bench.defaults import Serve
from foveate.bench.quality.cells import table
from foveate.bench.quality.plots import COLOURS, DPI, SIZE
from foveate.bench.serve.tables import COLUMNS, cells, context_line

PLOT = "serving.png"
PANELS = {
    "requests_per_second": ("requests per second", 1),
    "first_token": ("first token, s", 1),
    "per_token": ("each further token, ms", 1000),
}
READING = (
    "One server is asked the same questions about the same pictures by all arms in turn, in an order drawn for "
    'each round; no pruning is `mm_processor_kwargs={"foveate": null}`. No other round has the same pictures, and '
    "a first one is not counted.",
    "No pruning is not stock vLLM to the last: a server that may prune counts LLaVA's positions on three axes, "
    "and has no CUDA graphs of the encoder.",
    "Times are medians over a round's requests, then over rounds. *Of no pruning* says how many times as good, "
    "with an interval between order statistics of the rounds' ratios; **faster** and **slower** are said only "
    "where it leaves out 1.",
    "*Prompt tokens* are what the server counts. *Prefix found* are tokens of prompts that were in its cache, "
    "*images found* images that it had preprocessed before, of those looked up, by its own counters.",
)


def write_documents(data: dict[str, Any], folder: Path, command: str) -> Path:
    """Write the page and its plot into a folder; the page's path.

    Args:
        data: as `summarise` returns it.
        folder: exists.
        command: what writes it again.
    """
    rows = [cells(row) for row in data["rows"]]
    parts = [
        "# Serving: a vLLM server under load",
        f"Written by `{command}`: all numbers come from its results.",
        *([about] if (about := data["context"]["about"]) else []),
        context_line(data),
        "\n".join(f"- {line}" for line in READING),
        f"![Requests per second, time to the first token and of each further one]({PLOT})",
        table(COLUMNS, rows),
    ]
    _figure(data).savefig(folder / PLOT, dpi=DPI)
    path = folder / Serve.PAGE
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def _figure(data: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure

    rows, levels = data["rows"], data["context"]["concurrency"]
    places = [place + 0.6 * levels.index(row["concurrency"]) for place, row in enumerate(rows)]
    figure = Figure(figsize=(12.5, 1.2 + 0.34 * len(rows)), layout="constrained")
    for axes, (name, (title, scale)) in zip(
        figure.subplots(1, len(PANELS), sharey=True), PANELS.items(), strict=True
    ):
        middles = [scale * row[name]["median"] for row in rows]
        bars = [
            [scale * abs(row[name]["median"] - row[name]["quartiles"][side]) for row in rows] for side in (0, 1)
        ]
        colours = [COLOURS[3] if row["options"] is None else COLOURS[1] for row in rows]
        axes.barh(places, middles, xerr=bars, color=colours, error_kw={"lw": 1, "capsize": 2})
        axes.set_yticks(places, [f"{row['label']}, {row['concurrency']} at a time" for row in rows])
        axes.set_xlabel(f"{title} (median, quartiles)", fontsize=SIZE)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].invert_yaxis()
    return figure
