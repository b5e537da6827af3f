"""The command ``foveate estimate``: parsing and printing only."""

import json
from typing import Annotated

import typer
from rich.console import Console

from foveate.bench.estimate import cost, report
from foveate.bench.estimate.gpus import GPUS, Device, gpu
from foveate.bench.estimate.measure import measured
from foveate.bench.estimate.sizes import Sizes
from foveate.bench.speed.presets import PRESETS
from foveate.budget import Budget
from foveate.errors import InvalidOption

GPU = "RTX 4090"


def estimate(
    model: Annotated[
        str,
        typer.Option(help=f"A folder with config.json, a model id, mini, or {', '.join(PRESETS)}."),
    ],
    batch: Annotated[int, typer.Option(help="Rows, one image each.")] = 1,
    tokens: Annotated[
        int | None, typer.Option(help="Visual tokens of an image.", show_default="the model's own")
    ] = None,
    keep: Annotated[str, typer.Option(help="Of them, a count or a fraction: 64 or 0.11.")] = "64",
    text: Annotated[int, typer.Option(help="Tokens of text in a prompt.")] = cost.TEXT,
    gpu_name: Annotated[
        str | None, typer.Option("--gpu", help=f"One of {', '.join(GPUS)}.", show_default=GPU)
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure this machine instead, about ten seconds.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Estimate from a model's configuration alone whether pruning will pay, and what bounds each stage."""
    for name, value, least in (("batch", batch, 1), ("tokens", tokens, 1), ("text", text, 1)):
        if value is not None and value < least:
            raise InvalidOption(f"{name} {value}: allowed is {least} or more")
    budget, device = Budget.parse(keep), _device(gpu_name, measure)
    sizes = Sizes.of(model)
    number = sizes.tokens if tokens is None else tokens
    case = cost.Case(batch, number, budget.count(number), text)
    if case.kept == number:
        raise InvalidOption(f"keep {keep!r}: keeps all {number} tokens; allowed is less")
    found = report.estimate(model, sizes, device or measured(), case)
    if as_json:
        print(json.dumps(found))
        return
    for table in report.estimate_table(found):
        Console(width=Console(width=1000).measure(table).maximum).print(table)
    print("\n".join(report.notes(found)))


def _device(name: str | None, measure: bool) -> Device | None:
    """The GPU asked for; None to measure this machine, which waits until all else is known to be sound."""
    if measure and name is not None:
        raise InvalidOption(f"gpu {name!r} with --measure: allowed is one of the two")
    return None if measure else gpu(GPU if name is None else name)
