"""``foveate bench speed``."""

from typing import Annotated

import typer

from foveate.bench.defaults import Speed
from foveate.bench.documents import check_documents
from foveate.cli.names import check_budgets, check_methods
from foveate.cli.options import DocsOption, JsonFlag, KeepOption, OutOption
from foveate.cli.output import may_overwrite, print_json, show, written_command
from foveate.cli.telling import run_of


def measure_speed(
    context: typer.Context,
    preset: Annotated[
        str | None,
        typer.Option(help=f"Random weights at real dimensions: {', '.join(Speed.PRESETS)}."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Checkpoint path or id, in place of a preset.", show_default="mini")
    ] = None,
    methods: Annotated[str, typer.Option(help="Beside stock and our path with all tokens.")] = Speed.METHODS,
    keep: KeepOption = Speed.BUDGETS,
    batch: Annotated[str, typer.Option(help="Rows, one image each, such as 1,4.")] = Speed.BATCHES,
    sizes: Annotated[
        str | None,
        typer.Option(
            help="Visual tokens per image, where the preset's tower takes several.", show_default="its own"
        ),
    ] = None,
    text: Annotated[
        int | None,
        typer.Option(help="Tokens of text in a preset's prompt.", show_default=str(Speed.TEXT)),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length of every answer.")] = Speed.NEW_TOKENS,
    attention: Annotated[
        str, typer.Option(help=f"Of every arm: {', '.join(Speed.ATTENTIONS)}.")
    ] = Speed.ATTENTIONS[0],
    dtype: Annotated[
        str | None,
        typer.Option(
            help=f"Of every arm: {', '.join(Speed.DTYPES)}.", show_default="float32 on a CPU, else bfloat16"
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(help="Rounds, in each of which every arm passes once.")] = Speed.REPEATS,
    warmup: Annotated[int, typer.Option(help="Passes of each arm before.")] = Speed.WARMUP,
    clip: Annotated[str | None, typer.Option(help="CLIP pair of a checkpoint's vision tower: path or id.")] = None,
    out: OutOption = None,
    docs: DocsOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure what pruning costs and saves in time and memory, beside stock in the same process."""
    check_budgets(keep)
    check_methods(methods)
    if docs:
        check_documents(docs, Speed.PAGE, may_overwrite)
    with run_of(out, Speed.FILE) as told:
        told("loading the model")
        from foveate import bench

        benchmark = bench.speed.Benchmark.make(
            methods=methods,
            keep=keep,
            batch=batch,
            sizes=sizes,
            repeats=repeats,
            warmup=warmup,
            new_tokens=max_new_tokens,
        )
        subject = benchmark.subject(
            preset=preset, model=model, text=text, dtype=dtype, attention=attention, clip=clip
        )
        benchmark = benchmark.distinct(subject)
        store = benchmark.store(subject, out)
        told("starting", total=benchmark.passes(subject))
        summary = benchmark.measure(subject, store, progress=told)
        page = docs and bench.speed.write_documents(summary, docs, written_command(context))
    if as_json:
        print_json(summary)
        return
    for table in bench.speed.speed_tables(summary):
        show(table)
    print(bench.speed.context_line(summary))
    if page:
        print(f"written: {page}")
