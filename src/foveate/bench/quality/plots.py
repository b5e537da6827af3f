"""The plots of `docs/quality.md`, from the summary. Needs matplotlib (``pip install "foveate[plot]"``)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.bench.quality.suites import CONTROLS
from foveate.methods import METHODS, Merging, Method

Plain = dict[str, Any]

# Okabe and Ito's colours, told apart by people of all colour visions; markers and dashes besides.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#7F7F7F", "#CC79A7", "#56B4E9", "#000000", "#E69F00", "#8C510A")
MARKERS = "osD^vP*Xhp<>"
RESIDUAL = ("spare", "resprune", "rrqr", "dpp", "cdpruner")  # those of one engine
KINDS = {"residual selection": "o", "other selection": "s", "merging": "D", "controls": "X"}  # and their markers
CONTROL_DASHES = (0, (4, 2))
SIZE, DPI = 10, 130
PLOTS = {"accuracy": "quality-accuracy.png", "skills": "quality-skills.png", "energy": "quality-energy.png"}
FLOOR = 1e-6  # residual energies under it are drawn here


def draw_plots(data: Plain, folder: Path) -> dict[str, str]:
    """Write the plots into a folder; their file names, by what they show.

    Args:
        data: as `summarise` returns it, with the default suite.
        folder: exists.
    """
    figures = {"accuracy": _accuracy(data), "skills": _skills(data), "energy": _energy(data)}
    for name, figure in figures.items():
        figure.savefig(folder / PLOTS[name], dpi=DPI)
    return dict(PLOTS)


def _accuracy(data: Plain) -> Any:
    """Accuracy over tokens: a line and a band per method, a panel per kind; all others behind them, in grey."""
    lines = _lines(data)
    kinds = [kind for kind in KINDS if any(line.kind == kind for line in lines)]
    high = -(-len(kinds) // 2)
    figure = _figure(12.5, 0.6 + 4.6 * high)
    panels = figure.subplots(high, 2, sharey=True, squeeze=False)
    for axes in panels.flat[len(kinds) :]:
        axes.set_visible(False)
    for axes, kind in zip(panels.flat, kinds, strict=False):
        for line in lines:
            if line.kind != kind:
                _curve(axes, "", line.rows, {"color": "#000000", "lw": 0.8, "alpha": 0.18})
        for line in lines:
            if line.kind == kind:
                _band(axes, line.label, line.rows, line.style)
        full = data["everything"]
        axes.axhspan(*(100 * bound for bound in _interval(full)), color="#000000", alpha=0.07, lw=0)
        axes.axhline(
            100 * full["accuracy"], color="#000000", lw=1, ls=":", label=f"all {full['tokens']:.0f} tokens"
        )
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), frameon=False, ncols=4)
        _token_axis(axes, sorted(data["budgets"]))
        axes.set_title(kind, loc="left", fontsize=SIZE + 1)
    for axes in panels[:, 0]:
        axes.set_ylabel("right answers, %")
    context = data["context"]
    figure.suptitle(f"{context['model']}, {context['questions']} questions; bands are intervals of 95 %")
    return figure


def _curve(axes: Any, label: str, rows: dict[Any, Plain], style: Plain) -> None:
    keeps = sorted(rows)
    axes.plot(keeps, [100 * rows[keep]["accuracy"] for keep in keeps], label=label, **style)


def _band(axes: Any, label: str, rows: dict[Any, Plain], style: Plain) -> None:
    keeps = sorted(rows)
    lows, highs = ([100 * _interval(rows[keep])[side] for keep in keeps] for side in (0, 1))
    axes.fill_between(keeps, lows, highs, color=style["color"], alpha=0.13, lw=0)
    _curve(axes, label, rows, style)


def _skills(data: Plain) -> Any:
    """Accuracy per method and skill, at the middle budget and at the smallest."""
    keeps = list(dict.fromkeys((data["budgets"][len(data["budgets"]) // 2], data["budgets"][-1])))
    skills = list(data["context"]["skills"])
    rows = {keep: [row for row in data["suites"]["default"]["rows"] if row["keep"] == keep] for keep in keeps}
    height = 1.6 + 0.36 * (len(rows[keeps[0]]) + 1)
    figure = _figure(2.2 + len(keeps) * (0.62 * len(skills) + 0.9), height)
    panels = figure.subplots(1, len(keeps), sharey=True, squeeze=False)[0]
    for axes, keep in zip(panels, keeps, strict=True):
        shown = [("all tokens", data["everything"]), *((row["label"], row) for row in rows[keep])]
        values = [[100 * row["skills"][skill]["accuracy"] for skill in skills] for _, row in shown]
        image = axes.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto")
        for i, line in enumerate(values):
            for j, value in enumerate(line):
                ink = "#000000" if value > 55 else "#FFFFFF"
                axes.text(j, i, f"{value:.0f}", ha="center", va="center", color=ink, fontsize=SIZE - 1)
        axes.set_xticks(range(len(skills)), skills, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(shown)), [label for label, _ in shown])
        axes.set_title(f"{keep} tokens", loc="left", fontsize=SIZE + 1)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=panels, label="right answers, %", fraction=0.03, pad=0.015)
    return figure


def _energy(data: Plain) -> Any:
    """Accuracy over the energy left unexplained, and the rank correlations with their intervals."""
    figure = _figure(12.5, 5.2)
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    points = data["energy"]["points"]
    kinds = {line.label: line.kind for line in _lines(data)}
    for (kind, marker), colour in zip(KINDS.items(), COLOURS, strict=False):
        title = kind
        for label in (label for label, own in kinds.items() if own == kind):
            here = [point for point in points if point["label"] == label]
            energies = [max(1 - point["kept"], FLOOR) for point in here]
            values = [100 * point["accuracy"] for point in here]
            left.plot(energies, values, label=title, color=colour, marker=marker, markersize=5, lw=1)
            left.annotate(
                label, (energies[-1], values[-1]), (-5, 0), textcoords="offset points", ha="right", va="center",
                fontsize=SIZE - 3,
            )  # fmt: skip
            title = ""
    left.margins(x=0.14)
    left.set_xscale("log")
    left.invert_xaxis()
    left.set_xlabel(f"share of energy left unexplained ({FLOOR:g} stands for less) → better")
    left.set_ylabel("right answers, %")
    left.set_title("each point one budget, fewest tokens on the left", loc="left", fontsize=SIZE + 1)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", frameon=False, ncols=4)
    _forest(right, data)
    return figure


def _forest(axes: Any, data: Plain) -> None:
    kinds = {
        "across methods": ("across_methods", COLOURS[1], "s"),
        "over questions, pooled": ("per_question_pooled", COLOURS[3], "D"),
        "within a question": ("within_question", COLOURS[0], "o"),
        "beyond the method": ("beyond_method", COLOURS[2], "^"),
    }
    keeps = [*data["budgets"], None]
    for shift, (title, (name, colour, marker)) in enumerate(kinds.items()):
        found = {entry["keep"]: entry["rho"] for entry in data["energy"][name]}
        defined = [(place, found[keep]) for place, keep in enumerate(keeps) if found.get(keep)]
        places = [place + (shift - 1.5) * 0.2 for place, _ in defined]
        values = [entry["value"] for _, entry in defined]
        bars = [[abs(entry["value"] - _interval(entry)[side]) for _, entry in defined] for side in (0, 1)]
        axes.errorbar(
            values, places, xerr=bars, fmt=marker, color=colour, label=title, capsize=2, markersize=5, lw=1.4
        )
    axes.axvline(0, color="#000000", lw=0.8)
    axes.set_yticks(range(len(keeps)), [f"{keep} tokens" if keep else "all budgets" for keep in keeps])
    axes.set_xlabel("rank correlation of energy kept and right answers")
    axes.set_title("with 95 % intervals; empty where undefined", loc="left", fontsize=SIZE + 1)
    axes.set_ylim(len(keeps) - 0.5, -0.5)
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower right", frameon=False, ncols=2)


def _interval(entry: Plain) -> Sequence[float]:
    """The value itself where there is none: nothing is drawn then."""
    value: float = entry["value"] if "value" in entry else entry["accuracy"]
    bounds: Sequence[float] = entry["interval"] or (value, value)
    return bounds


@dataclass(frozen=True)
class _Line:
    """A method of the default suite: its rows by budget, and how it is drawn in the panel of its kind."""

    label: str
    kind: str
    rows: dict[Any, Plain]
    style: Plain


def _lines(data: Plain) -> list[_Line]:
    """Controls are dashed."""
    rows = data["suites"]["default"]["rows"]
    lines: list[_Line] = []
    for label in dict.fromkeys(row["label"] for row in rows):
        here = {row["keep"]: row for row in rows if row["label"] == label}
        method = next(iter(here.values()))["method"]
        kind = _kind(method)
        number = sum(line.kind == kind for line in lines)
        is_control = method in CONTROLS
        style = {
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKERS[number % len(MARKERS)],
            "markersize": 5,
            "lw": 1.3 if is_control else 2.4,
            "ls": CONTROL_DASHES if is_control else "-",
        }
        lines.append(_Line(label, kind, here, style))
    return lines


def _kind(spec: str) -> str:
    """The panel that a method is drawn in."""
    name = spec.partition(":")[0]
    if name in CONTROLS and name not in RESIDUAL:
        return "controls"
    if issubclass(METHODS.get(name, Method), Merging):
        return "merging"
    return "residual selection" if name in RESIDUAL else "other selection"


def _token_axis(axes: Any, keeps: Sequence[int | float]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(keeps, [str(keep) for keep in keeps])
    axes.minorticks_off()
    axes.set_xlabel("visual tokens kept")


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
