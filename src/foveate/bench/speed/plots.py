"""The plots of `docs/performance.md`, from the summary. Needs matplotlib (``pip install "foveate[plot]"``)."""

from pathlib import Path
from textwrap import wrap
from typing import Any

from foveate.bench.quality.plots import COLOURS, DPI, MARKERS, SIZE
from foveate.bench.speed.contestants import STOCK, WHOLE
from foveate.bench.speed.passing import STAGES
from foveate.bench.speed.summary import PAYS
from foveate.budget import Budget

Plain = dict[str, Any]

PLOTS = {
    "stages": "performance-stages.png",
    "break_even": "performance-break-even.png",
    "batches": "performance-batches.png",
}
AXES = {"tokens": "visual tokens of the image", "batch": "rows of the batch", "keep": "tokens kept"}
TITLES = {"first_token": "to the first token", "end_to_end": "end to end"}


def draw_plots(data: Plain, folder: Path) -> dict[str, str]:
    """Write the plots into a folder; their file names, by what they show: ``batches`` where there are several.

    Args:
        data: as `summarise` returns it.
        folder: exists.
    """
    sizes, batches = ({case[name] for case in data["cases"]} for name in ("tokens", "batch"))
    figures = {"stages": _stages(data), "break_even": _break_even(data, "tokens" if len(sizes) > 1 else "keep")}
    if len(batches) > 1:
        figures["batches"] = _break_even(data, "batch")
    for name, figure in figures.items():
        figure.savefig(folder / PLOTS[name], dpi=DPI)
    return {name: PLOTS[name] for name in figures}


def _stages(data: Plain) -> Any:
    """Prefill with its quartiles, and all stages one after another, of the largest image at the smallest batch."""
    first = min(case["batch"] for case in data["cases"])
    case = max((case for case in data["cases"] if case["batch"] == first), key=lambda case: case["tokens"])
    rows, places = case["rows"], range(len(case["rows"]))
    figure = _figure(12.5, 1.6 + 0.34 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    prefill = [row["seconds"]["prefill"] for row in rows]
    middles = [1000 * entry["median"] for entry in prefill]
    bars = [[1000 * abs(entry["median"] - entry["quartiles"][side]) for entry in prefill] for side in (0, 1)]
    left.barh(places, middles, xerr=bars, color=COLOURS[1], error_kw={"lw": 1, "capsize": 2})
    left.set_yticks(places, [row["label"] for row in rows])
    left.invert_yaxis()
    left.set_xlabel("prefill, ms (median, quartiles)")
    starts = [0.0] * len(rows)
    for stage, colour in zip(STAGES, COLOURS, strict=False):
        widths = [1000 * _stage(row, stage, data["context"]["new_tokens"]) for row in rows]
        right.barh(places, widths, left=starts, color=colour, label=stage)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    right.set_xlabel(f"end to end with {data['context']['new_tokens']} new tokens, ms (medians)")
    right.legend(frameon=False, ncols=len(STAGES), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    _entitle(figure, _title(data, case))
    return figure


def _stage(row: Plain, stage: str, new_tokens: int) -> float:
    if stage == "decode":
        return float(row["seconds"]["decode_per_token"]["median"]) * (new_tokens - 1)
    return float(row["seconds"][stage]["median"])


def _break_even(data: Plain, over: str) -> Any:
    """Times as fast as stock over one of `AXES`, a line per budget; else the smallest batch and largest image."""
    batch, tokens = min(case["batch"] for case in data["cases"]), max(case["tokens"] for case in data["cases"])
    chosen = {
        "tokens": lambda case: case["batch"] == batch,
        "batch": lambda case: case["tokens"] == tokens,
        "keep": lambda case: (case["batch"], case["tokens"]) == (batch, tokens),
    }[over]
    cases = sorted(filter(chosen, data["cases"]), key=lambda case: (case["tokens"], case["batch"]))
    methods = list(dict.fromkeys(row["method"] for row in cases[0]["rows"] if row["method"] not in (STOCK, WHOLE)))
    figure = _figure(3.4 * max(len(methods), 2), 6.6)
    panels = figure.subplots(len(PAYS), max(len(methods), 1), sharex=True, sharey="row", squeeze=False)
    for measure, line in zip(PAYS, panels, strict=True):
        for method, axes in zip(methods, line, strict=False):
            _panel(axes, cases, method, measure, over)
        line[0].set_ylabel(f"times as fast as stock\n{TITLES[measure]}")
    for method, axes in zip(methods, panels[0], strict=False):
        axes.set_title(method, loc="left", fontsize=SIZE + 1)
    for axes in panels[-1]:
        axes.set_xlabel(AXES[over])
    if methods:
        handles = panels[0][0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", frameon=False, ncols=6)
    _entitle(figure, f"{_title(data, cases[-1], over)}; in the shade pruning slows down")
    return figure


def _panel(axes: Any, cases: list[Plain], method: str, measure: str, over: str) -> None:
    rows = [[row for row in case["rows"] if row["method"] == method] for case in cases]
    if over != "keep":
        lines = {
            f"keep {column[0]['keep']}": [
                (case[over], row["speedup"][measure]) for case, row in zip(cases, column, strict=True)
            ]
            for column in zip(*rows, strict=True)
        }
    else:
        # A budget is a count or a fraction: only what it comes to can be on one axis.
        kept = [(Budget(row["keep"]).count(cases[0]["tokens"]), row["speedup"][measure]) for row in rows[0]]
        lines = {"": sorted(kept, key=lambda pair: pair[0])}
    for number, (label, points) in enumerate(lines.items()):
        middles = [ratio["median"] for _, ratio in points]
        bars = [
            [abs(ratio["median"] - (ratio["interval"] or [ratio["median"]] * 2)[side]) for _, ratio in points]
            for side in (0, 1)
        ]
        axes.errorbar(
            [place for place, _ in points],
            middles,
            yerr=bars,
            label=label,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=5,
            capsize=2,
            lw=1.8,
        )
    places = sorted({place for points in lines.values() for place, _ in points})
    axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.minorticks_off()
    axes.axhline(1, color="#000000", lw=1, ls=":")
    axes.axhspan(0, 1, color="#000000", alpha=0.07, lw=0)
    axes.set_ylim(bottom=0)


def _title(data: Plain, case: Plain, over: str = "keep") -> str:
    context = data["context"]
    told = {"tokens": f"{case['tokens']} visual tokens, ", "batch": f"batch {case['batch']}, "}
    told.pop(over, None)
    return (
        f"{context['model'].partition(' (')[0]}, {''.join(told.values())}{context['dtype']}, "
        f"{context['attention']}; {context['machine']}; {context['repeats']} repeats"
    )


def _entitle(figure: Any, title: str) -> None:
    """In as many lines as its width asks for: matplotlib cuts what does not fit."""
    letters = int(figure.get_figwidth() * 72 / (0.62 * SIZE))
    figure.suptitle("\n".join(wrap(title, letters)), fontsize=SIZE)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
