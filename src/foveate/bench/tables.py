"""The same data as tables for a terminal."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from foveate.bench.answers import Answer
from foveate.bench.quality.cells import percent


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


def models_table(families: Sequence[dict[str, Any]]) -> Table:
    """The supported families for a terminal."""
    table = plain_table("model type", "models", "vision towers")
    for family in families:
        table.add_row(family["model_type"], family["name"], ", ".join(family["towers"]))
    return table


def plain_table(*columns: str, title: str | None = None) -> Table:
    """A table without frames."""
    return Table(*columns, title=title, title_justify="left", title_style="", box=SIMPLE_HEAD, pad_edge=False)
