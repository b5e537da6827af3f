"""Sections of the page: the questions that need detail, reconstruction error, and one for each further suite."""

from collections.abc import Sequence
from typing import Any

from foveate.bench.quality.cells import DASH, listed, percent, points, rho, table
from foveate.bench.quality.suites import SIGN_PAIRS, SIGNS

Plain = dict[str, Any]


def detail(data: Plain) -> str:
    """VTC-Bench's split."""
    entries = data["detail"]
    sizes = {(entry["keep"], entry["group"]): entry["n"] for entry in entries}
    labels = list(dict.fromkeys(entry["label"] for entry in entries))
    parts = [
        "## Questions that need detail",
        "VTC-Bench's split: the questions that the image down-sampled to as many tokens gets wrong, and "
        "the rest. The down-sampled image itself is left out: it is wrong on all of the first and right on all of "
        "the rest because that is how they were chosen. For the same reason the first group holds the questions "
        "that the model fails with any tokens: read a method against the row *none* (all tokens).",
    ]
    for group, title in (("detail", "Wrong when down-sampled"), ("rest", "Right when down-sampled")):
        cells = {(e["label"], e["keep"]): percent(e) for e in entries if e["group"] == group}
        header = ["method", *(f"{keep} (n = {sizes.get((keep, group), 0)})" for keep in data["budgets"])]
        rows = [[label, *(cells.get((label, keep), DASH) for keep in data["budgets"])] for label in labels]
        parts += [f"{title}, per cent right:", table(header, rows)]
    lines = []
    for keep in data["budgets"]:
        here = [
            e
            for e in entries
            if e["group"] == "detail" and e["keep"] == keep and e["label"] not in ("none", "random")
        ]
        ahead, behind = ([e["label"] for e in here if e["to_random"]["sign"] == sign] for sign in (1, -1))
        lines.append(f"- {keep} tokens: ahead of random: {listed(ahead)}; behind it: {listed(behind)}.")
    parts += ["On the questions that need detail (paired):", "\n".join(lines)]
    return "\n\n".join(parts)


def energy(data: Plain, plots: dict[str, str]) -> str:
    """Reconstruction error and accuracy."""
    found = data["energy"]
    labels = [entry["label"] for entry in found["over_budgets"]]
    within = {entry["keep"]: entry["rho"] for entry in found["within_question"]}
    beyond = {entry["keep"]: entry["rho"] for entry in found["beyond_method"]}
    pooled = {entry["keep"]: entry["rho"] for entry in found["per_question_pooled"]}
    across = {entry["keep"]: entry["rho"] for entry in found["across_methods"]}
    single = {(entry["label"], entry["keep"]): entry["rho"] for entry in found["per_question"]}
    scopes = [*data["budgets"], None]
    header = ["", *map(str, data["budgets"]), "all"]
    return "\n\n".join(
        [
            "## Does reconstruction error predict accuracy?",
            f"![Accuracy over the energy that kept tokens leave unexplained]({plots['energy']})",
            "Spearman's rank correlation between the share of the features' energy that the tokens sent span, "
            "and right answers. Positive is what the methods assume. Five readings, from the loosest to the "
            "strictest.",
            "**Within a method, over budgets** (mean energy and accuracy). More tokens span more, whichever they "
            "are, so this says little about which to keep.",
            table(["method", "correlation"], [[e["label"], rho(e["rho"])] for e in found["over_budgets"]]),
            f"**Across methods, at one budget** (mean energy and accuracy, {len(labels)} methods; the interval is "
            "over questions, for these methods).",
            table(header[:-1], [["across methods", *(rho(across[keep]) for keep in data["budgets"])]]),
            "**Over questions, within a method and budget**, and pooled with each arm's own level removed. Here "
            "an image that is hard to span may also be one that is hard to answer.",
            table(
                header,
                [
                    *([label, *(rho(single.get((label, k))) for k in data["budgets"]), DASH] for label in labels),
                    ["pooled", *(rho(pooled[keep]) for keep in scopes)],
                ],
            ),
            "**Across methods, within one question and budget**: of the methods that saw the same image with the "
            "same number of tokens, do those that span more of it answer it more often? Neither the image's "
            "difficulty nor the budget can bring this about; a method that spans more and is better for another "
            "reason can. The second row therefore removes each method's own level too: does a method answer "
            "those images better of which it spans more than it usually does, as against the others?",
            table(
                header,
                [
                    ["within a question", *(rho(within[keep]) for keep in scopes)],
                    ["beyond the method", *(rho(beyond[keep]) for keep in scopes)],
                ],
            ),
            "\n".join(
                [
                    f"- {answer('Across methods the correlation is', across, data['budgets'])}",
                    f"- {answer('Within one question it is', within, data['budgets'])}",
                    f"- {answer('Beyond the method it is', beyond, data['budgets'])}",
                ]
            ),
        ]
    )


def in_short(data: Plain) -> str:
    """What the intervals allow to say, in a few lines."""
    lines = []
    controls = data.get("controls", [])
    for method in dict.fromkeys(entry["of"] for entry in controls):
        entries = [entry for entry in controls if entry["of"] == method]
        losses = [
            f"{keep} ({listed(names)})"
            for keep in data["budgets"]
            if (names := [e["to"] for e in entries if e["keep"] == keep and e["sign"] < 0])
        ]
        best = [str(k) for k in data["budgets"] if all(e["sign"] > 0 for e in entries if e["keep"] == k)]
        lost = f"loses to a control at {'; at '.join(losses)}" if losses else "loses to no control for certain"
        won = f"is ahead of every control at {listed(best)}" if best else "is ahead of every control at no budget"
        lines.append(f"**{method}** {lost}; it {won}.")
    signs = data["suites"].get(SIGNS, {"differences": []})["differences"]
    for one, other in SIGN_PAIRS:
        found = [d for d in signs if (d["of"], d["to"]) == (one, other)]
        if found:
            lines.append(f"Sign of the relevance: `{one}` against `{other}` is {standing(found)}.")
    if "energy" in data:
        within = {entry["keep"]: entry["rho"] for entry in data["energy"]["within_question"]}
        what = "Energy kept and right answers, across methods within one question: the correlation is"
        lines.append(answer(what, within, data["budgets"]))
    return "## In short\n\n" + "\n".join(f"- {line}" for line in lines) if lines else ""


def suite(name: str, entry: Plain, budgets: Sequence[int | float]) -> str:
    """Accuracies, the differences of interest, and what they allow to say."""
    labels = list(dict.fromkeys(row["label"] for row in entry["rows"]))
    cells = {(row["label"], row["keep"]): percent(row) for row in entry["rows"]}
    parts = [
        f"## Suite `{name}`",
        entry["asks"],
        "Per cent right:",
        table(["", *map(str, budgets)], [[label, *(cells[label, keep] for keep in budgets)] for label in labels]),
    ]
    for skill in dict.fromkeys(difference["skill"] for difference in entry["differences"]):
        found = [difference for difference in entry["differences"] if difference["skill"] == skill]
        of = f" ({skill} alone)" if skill else ""
        if skill:
            shown = {(row["label"], row["keep"]): percent(row["skills"][skill]) for row in entry["rows"]}
            rows = [[label, *(shown[label, keep] for keep in budgets)] for label in labels]
            parts += [f"Per cent right, {skill}:", table(["", *map(str, budgets)], rows)]
        pairs = list(dict.fromkeys((difference["of"], difference["to"]) for difference in found))
        gaps = {(d["of"], d["to"], d["keep"]): points(d) for d in found}
        rows = [[f"`{a}` − `{b}`", *(gaps[a, b, keep] for keep in budgets)] for a, b in pairs]
        parts += [f"Difference in points{of}:", table(["", *map(str, budgets)], rows)]
        told = {pair: standing([d for d in found if (d["of"], d["to"]) == pair]) for pair in pairs}
        parts.append("\n".join(f"- `{a}` against `{b}`: {told[a, b]}." for a, b in pairs))
    return "\n\n".join(parts)


def standing(entries: Sequence[Plain]) -> str:
    """At which budgets one side is ahead, behind, or neither."""
    keeps = {sign: [str(entry["keep"]) for entry in entries if entry["sign"] == sign] for sign in (1, -1, 0)}
    words = {1: "ahead", -1: "behind", 0: "not told apart"}
    return "; ".join(f"{words[sign]} at {listed(found)}" for sign, found in keeps.items() if found)


def answer(what: str, found: dict[Any, Plain | None], budgets: Sequence[int | float]) -> str:
    """A sentence: at which budgets a correlation is positive, negative, or neither for certain."""
    names = {1: "positive", -1: "negative", 0: "not told apart from none", None: "undefined"}
    groups: dict[str, list[str]] = {name: [] for name in names.values()}
    for keep in budgets:
        entry = found[keep]
        groups[names[None if entry is None else entry["sign"]]].append(str(keep))
    told = [f"{name} at {listed(keeps)} tokens" for name, keeps in groups.items() if keeps]
    note = " (undefined: all methods span everything, or all answer alike)" if groups["undefined"] else ""
    return f"{what} {'; '.join(told)}{note}."
