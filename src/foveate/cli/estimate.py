"""``foveate estimate``."""

from typing import TYPE_CHECKING, Annotated

import typer

from foveate.bench.defaults import GPU, Speed
from foveate.bench.estimate.gpus import GPUS, gpu
from foveate.budget import Budget
from foveate.cli.options import JsonFlag
from foveate.cli.output import print_json, show
from foveate.errors import InvalidOption

if TYPE_CHECKING:
    from foveate.bench.estimate.gpus import Device


def estimate(
    model: Annotated[
        str,
        typer.Option(help=f"A folder with config.json, a model id, mini, or {', '.join(Speed.PRESETS)}."),
    ],
    batch: Annotated[int, typer.Option(help="Rows, one image each.")] = 1,
    tokens: Annotated[
        int | None, typer.Option(help="Visual tokens of an image.", show_default="the model's own")
    ] = None,
    keep: Annotated[str, typer.Option(help="Of them, a count or a fraction: 64 or 0.11.")] = "64",
    text: Annotated[int, typer.Option(help="Tokens of text in a prompt.")] = Speed.TEXT,
    gpu_name: Annotated[
        str | None, typer.Option("--gpu", help=f"One of {', '.join(GPUS)}.", show_default=GPU)
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure this machine instead, about ten seconds.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Estimate from a model's configuration alone whether pruning will pay, and what bounds each stage."""
    for name, value in (("batch", batch), ("tokens", tokens), ("text", text)):
        if value is not None and value < 1:
            raise InvalidOption(f"{name} {value}: allowed is 1 or more")
    budget, device = Budget.parse(keep), _device(gpu_name, measure)
    from foveate.bench import estimate as estimating

    sizes = estimating.Sizes.of(model)
    total = sizes.tokens if tokens is None else tokens
    case = estimating.Case(batch, total, budget.count(total), text)
    if case.kept == total:
        raise InvalidOption(f"keep {keep!r}: keeps all {total} tokens; allowed is less")
    found = estimating.estimate(model, sizes, device or estimating.measured(), case)
    if as_json:
        print_json(found)
        return
    show(estimating.estimate_table(found))
    print("\n".join(estimating.notes(found)))


def _device(name: str | None, measure: bool) -> "Device | None":
    """The GPU asked for; None to measure this machine, which waits until all else is known to be sound."""
    if measure and name is not None:
        raise InvalidOption(f"gpu {name!r} with --measure: allowed is one of the two")
    return None if measure else gpu(GPU if name is None else name)
