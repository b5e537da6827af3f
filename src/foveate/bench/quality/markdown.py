"""The page `docs/quality.md`: every number and every sentence with one comes from the summary."""

from collections.abc import Callable
from typing import Any

from foveate.bench.quality.cells import listed, percent, points, table
from foveate.bench.quality.sections import detail, energy, in_short, suite
from foveate.bench.quality.suites import DEFAULT

Plain = dict[str, Any]


def as_markdown(data: Plain, command: str, plots: dict[str, str]) -> str:
    """The page.

    Args:
        data: as `summarise` returns it.
        command: what writes it again.
        plots: file names of the plots, by ``accuracy``, ``skills`` and ``energy``.
    """
    parts: list[str] = [_opening(data, command), in_short(data)]
    if DEFAULT in data["suites"]:
        parts += [_accuracy(data, plots), _controls(data), _skills(data, plots), detail(data), energy(data, plots)]
    parts += [suite(name, entry, data["budgets"]) for name, entry in data["suites"].items() if name != DEFAULT]
    parts.append(_limits(data))
    return "\n\n".join(part for part in parts if part) + "\n"


def context_line(data: Plain) -> str:
    """What was measured, and on what, in one line."""
    context = data["context"]
    versions = ", ".join(f"{name} {number}" for name, number in context["versions"].items())
    asked = f"{context['questions']} question{'s' * (context['questions'] != 1)}"
    return (
        f"{asked} ({context['data']}), model {context['model']}, "
        f"nouns by {context['tagger']}; {context['machine']}; {versions}."
    )


def _opening(data: Plain, command: str) -> str:
    full, drawn = data["everything"], data["intervals"]
    number = _count(data)
    reading = [
        "Intervals are of 95 %. Accuracies have Wilson's; random's are a bootstrap's, as it has several seeds. "
        f"All that is compared has a paired bootstrap over questions ({drawn['resamples']} resamples): both sides "
        "answer the same questions in every resample. One made-up question for either side joins in, so that a "
        "handful of questions cannot make a difference.",
        f"*Random* is the mean of {drawn['random_seeds']} seeds, each of which keeps the same places in every "
        "image; seeds are drawn in every resample, too.",
        "Every arm sent exactly the number of visual tokens that its column names; a run stops otherwise.",
        'A difference is called one (**bold**, "ahead", "behind") only where its interval leaves out 0. '
        f"This page holds {number} such comparisons and corrects for none: if nothing differed, up to "
        f"{round(number / 20)} or so would stand out by chance. One bold cell is weak; a row of them is not.",
    ]
    return "\n\n".join(
        [
            "# Quality: what is left with fewer visual tokens",
            f"Written by `{command}`: all numbers, and the sentences that hold them, come from its results.",
            f"{context_line(data)} With all {full['tokens']:.0f} visual tokens {percent(full)} % are right.",
            "\n".join(f"- {line}" for line in reading),
        ]
    )


def _accuracy(data: Plain, plots: dict[str, str]) -> str:
    rows = data["suites"][DEFAULT]["rows"]
    return "\n\n".join(
        [
            "## Accuracy over tokens",
            f"![Accuracy over visual tokens kept, with bands]({plots['accuracy']})",
            "Per cent right:",
            _by_budget(data, rows, percent),
            "Per cent of what all tokens get right (paired):",
            _by_budget(data, rows, lambda row: percent(row["relative"], "value")),
            "Points above or below random tokens (paired):",
            _by_budget(data, [row for row in rows if row["method"] != "random"], lambda r: points(r["to_random"])),
            "\n".join(_standing(here, keep) for keep, here in _at_budgets(data, rows).items()),
        ]
    )


def _standing(rows: list[Plain], keep: int | float) -> str:
    """One budget: who is ahead of random, who behind, and who cannot be told from all tokens."""
    others = [row for row in rows if row["method"] != "random"]
    groups = {sign: [row["label"] for row in others if row["to_random"]["sign"] == sign] for sign in (1, -1, 0)}
    lossless = [row["label"] for row in rows if row["to_all"]["sign"] == 0]
    text = f"- **{keep} tokens.** Ahead of random: {listed(groups[1])}. Behind it: {listed(groups[-1])}."
    text += f" Not told apart from it: {listed(groups[0])}."
    return f"{text} Not told apart from all tokens: {listed(lossless)}."


def _controls(data: Plain) -> str:
    entries = data["controls"]
    if not entries:
        return "## Against the controls\n\nNo method but controls was measured."
    parts = ["## Against the controls", "Points that a method is above a control (paired):"]
    pairs = list(dict.fromkeys((entry["of"], entry["to"]) for entry in entries))
    cells = {(entry["of"], entry["to"], entry["keep"]): points(entry) for entry in entries}
    header = ["method − control", *map(str, data["budgets"])]
    rows = [[f"{of} − {to}", *(cells[of, to, keep] for keep in data["budgets"])] for of, to in pairs]
    parts.append(table(header, rows))
    for method in dict.fromkeys(entry["of"] for entry in entries):
        lines = [f"**{method}**"]
        for keep in data["budgets"]:
            here = [entry for entry in entries if entry["of"] == method and entry["keep"] == keep]
            loses, wins, open_ = ([e["to"] for e in here if e["sign"] == sign] for sign in (-1, 1, 0))
            lines.append(
                f"- {keep} tokens: loses to {listed(loses)}; wins against {listed(wins)}; "
                f"not told apart from {listed(open_)}."
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _skills(data: Plain, plots: dict[str, str]) -> str:
    names = list(data["context"]["skills"])
    parts = ["## Skills", f"![Accuracy per method and skill]({plots['skills']})"]
    by_budget = _at_budgets(data, data["suites"][DEFAULT]["rows"])
    everything = ["all tokens", *(percent(data["everything"]["skills"][name]) for name in names)]
    header = ["method", *(f"{name} (n = {data['context']['skills'][name]})" for name in names)]
    for keep, rows in by_budget.items():
        body = [[row["label"], *(percent(row["skills"][name]) for name in names)] for row in rows]
        parts.append(
            f"<details><summary>{keep} tokens: per cent right, by skill</summary>\n\n"
            f"{table(header, [everything, *body])}\n\n</details>"
        )
    return "\n\n".join(parts)


_OF_SCENES = (
    "The model is small and has seen nothing but drawn scenes, which are mostly background. What pruning does to "
    "it shows how a method works; it does not say what LLaVA-7B loses on photographs.",
    "Things lie near the middles of a 4 x 4 grid's cells, and 16 even tokens fall into those middles: `uniform` "
    "at 16 owes that to the grid.",
    "mini's tower was never trained on another size of image, so `downsample` also pays for position embeddings "
    "that are interpolated; a model trained on several sizes would lose less.",
)


def _limits(data: Plain) -> str:
    own = data["context"]["split"] == "own"
    lines = [
        "Intervals are over questions alone. Another model, another training of the same model, or another prompt "
        "may move all of it.",
        "The methods' unpublished details are this project's reading of their papers (docs/methods.md): a loss "
        "here is a loss of that reading. Two options were chosen on `dev` questions of mini, SPARE's `beta` and "
        "ResPrune's `floor`; their plain readings are rows of the suites of these names. Nothing else was tuned.",
        "Equal tokens are not equal seconds: selection costs time, and a down-sampled image saves the encoder's.",
    ]
    if not own:
        lines = [*_OF_SCENES, *lines]
    return "## What these numbers do not show\n\n" + "\n".join(f"- {line}" for line in lines)


def _by_budget(data: Plain, rows: list[Plain], cell: Callable[[Plain], str]) -> str:
    labels = list(dict.fromkeys(row["label"] for row in rows))
    cells = {(row["label"], row["keep"]): cell(row) for row in rows}
    header = ["method", *map(str, data["budgets"])]
    return table(header, [[label, *(cells[label, keep] for keep in data["budgets"])] for label in labels])


def _at_budgets(data: Plain, rows: list[Plain]) -> dict[int | float, list[Plain]]:
    return {keep: [row for row in rows if row["keep"] == keep] for keep in data["budgets"]}


def _count(data: Plain) -> int:
    """The comparisons with an interval that this page shows: differences, and correlations."""
    default = data["suites"].get(DEFAULT, {"rows": []})["rows"]
    to_random = [row for row in default if row["method"] != "random"]
    detail = [e for e in data.get("detail", ()) if e["group"] == "detail" and e["label"] not in ("none", "random")]
    controls = [entry for entry in data.get("controls", ()) if entry["to"] != "random"]  # those are in `to_random`
    suites = [d for name, entry in data["suites"].items() if name != DEFAULT for d in entry["differences"]]
    tables = [table for name, table in data.get("energy", {}).items() if name != "points"]
    correlations = [entry for table in tables for entry in table if entry["rho"] is not None]
    return sum(map(len, (default, to_random, detail, controls, suites, correlations)))
