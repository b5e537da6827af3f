"""The same data as tables for a terminal."""

from collections.abc import Iterator, Sequence
from dataclasses import Field, fields
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from foveate.bench.answers import Answer
from foveate.bench.quality.cells import percent
from foveate.families import DOWN_AND_UP, FAMILIES
from foveate.methods import INSIDE, METHODS, Inside, Method, Resizing


def answers_table(answers: Sequence[Answer]) -> Table:
    """One row per arm: tokens, seconds of each stage, answer."""
    title = f"{answers[0].tokens[1]} visual tokens; what each method sends to the model"
    table = plain_table("method", title=title)
    for name in ("visual", "prompt", *answers[0].seconds):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("answer", overflow="fold", max_width=60)
    for answer in answers:
        seconds = (f"{value:.3f}" for value in answer.seconds.values())
        per_layer = answer.tokens_per_layer
        mean = f" (mean of layers {sum(per_layer) / len(per_layer):.0f})" if len(set(per_layer)) > 1 else ""
        table.add_row(
            answer.arm.title, f"{answer.tokens[0]}{mean}", str(answer.prompt), *seconds, Text(answer.text)
        )
    return table


def quality_tables(data: dict[str, Any]) -> Iterator[Table]:
    """One table per suite of a summary: accuracy in per cent, by budget; the rest is in its other forms."""
    full = data["everything"]
    for name, suite in data["suites"].items():
        table = plain_table("method", title=f"{name}: % right (95 % interval)")
        for keep in data["budgets"]:
            table.add_column(str(keep), justify="right", no_wrap=True)
        table.add_row(f"all {full['tokens']:.0f} tokens", *[percent(full)] * len(data["budgets"]))
        for label in dict.fromkeys(row["label"] for row in suite["rows"]):
            table.add_row(label, *(percent(row) for row in suite["rows"] if row["label"] == label))
        yield table


def describe_methods() -> list[dict[str, Any]]:
    """Name, class, options with defaults, signals, families, facts and source of every method.

    ``servable``: by an engine that needs the count of tokens before it encodes (`Method.countable`).
    """
    rows = []
    kinds: dict[str, type[Method] | type[Inside]] = {**METHODS, **INSIDE}
    for name, method in kinds.items():
        default = method()
        rows.append(
            {
                "name": name,
                "class": method.__name__,
                "options": {field.name: getattr(default, field.name) for field in _in_order(method)},
                "needs": sorted(signal.value for signal in default.needs),
                "wants": sorted(signal.value for signal in default.wants),
                "families": _families(default),
                "acts": method.acts,
                "complexity": method.complexity,
                "nested": method.nested,
                "servable": method.countable,
                "source": method.source,
            }
        )
    return rows


def _in_order(method: type[Method] | type[Inside]) -> list[Field[Any]]:
    """The options as a call takes them: those by name alone come last."""
    return sorted(fields(method), key=lambda field: field.kw_only is True)


def _families(method: Method | Inside) -> str:
    """Which families the method can serve, with its options as they are."""
    if isinstance(method, Inside):
        return f"all but {', '.join(name for name, family in FAMILIES.items() if not family.drops_inside)}"
    if isinstance(method, Resizing):
        others = [name for name, family in FAMILIES.items() if family.resizes == DOWN_AND_UP]
        return f"all; {DOWN_AND_UP}: {', '.join(others)}"
    return "all"  # whose towers have a CLS token or not: `auto` options take what there is


def methods_table(rows: Sequence[dict[str, Any]]) -> Table:
    """`describe_methods` for a terminal, without the options."""
    table = plain_table("name", "source", "needs", "families", "acts", "complexity", "nested", "servable")
    for row in rows:
        flags = ("yes" if row[flag] else "no" for flag in ("nested", "servable"))
        cells = (row[fact] for fact in ("families", "acts", "complexity"))
        table.add_row(row["name"], row["source"], ", ".join(row["needs"]), *cells, *flags)
    return table


def models_table(families: Sequence[dict[str, Any]]) -> Table:
    """The supported families for a terminal."""
    table = plain_table("model type", "models", "vision towers")
    for family in families:
        table.add_row(family["model_type"], family["name"], ", ".join(family["towers"]))
    return table


def plain_table(*columns: str, title: str | None = None) -> Table:
    """A table without frames."""
    return Table(*columns, title=title, title_justify="left", title_style="", box=SIMPLE_HEAD, pad_edge=False)
