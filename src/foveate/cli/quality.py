"""``foveate bench quality``."""

from pathlib import Path
from typing import Annotated

import typer

from foveate.bench.defaults import MINI, Quality
from foveate.bench.documents import check_documents
from foveate.cli.names import check_budgets, check_file, check_methods
from foveate.cli.options import DocsOption, JsonFlag, KeepOption, ModelOption, OutOption
from foveate.cli.output import may_overwrite, print_json, show, written_command
from foveate.cli.telling import run_of


def measure_quality(
    context: typer.Context,
    suite: Annotated[
        str, typer.Option(help=f"{Quality.DEFAULT}, {', '.join(Quality.SUITES)}; several, or all.")
    ] = Quality.DEFAULT,
    methods: Annotated[
        str | None,
        typer.Option(help="What the default suite compares, beside the controls.", show_default="all there are"),
    ] = None,
    keep: KeepOption = Quality.BUDGETS,
    questions: Annotated[int, typer.Option(help="How many, each about a scene of its own.")] = 400,
    split: Annotated[
        str | None,
        typer.Option(help="Of mini's scenes: test to report, dev to tune, or fresh.", show_default="test"),
    ] = None,
    model: ModelOption = MINI,
    clip: Annotated[str | None, typer.Option(help="CLIP pair of its vision tower: path or id.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Questions of your own: JSONL of image, question, answers, skill.")
    ] = None,
    out: OutOption = None,
    docs: DocsOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure which methods answer how much with how few tokens, beside every control."""
    check_budgets(keep)
    check_methods(methods)
    if split is None:
        check_file("data", data)
    if docs:
        check_documents(docs, Quality.PAGE, may_overwrite)
    with run_of(out, Quality.FILE) as told:
        from foveate import bench

        told("drawing the questions")
        benchmark = bench.quality.Benchmark.make(
            suite=suite,
            methods=methods,
            keep=keep,
            questions=questions,
            split=split,
            data=data,
            last_word=model == MINI,
        )
        told("loading the model")
        vlm, processor = bench.load(model)
        plan = benchmark.plan(vlm, processor, clip)
        store = benchmark.store(vlm, out, clip)
        told("starting", total=len(plan.arms) * len(benchmark.items))
        summary = benchmark.measure(plan, store, vlm, processor, name=model, clip=clip, progress=told)
        told("counting")
        if out:
            bench.quality.write_summary(summary, out)
        page = docs and bench.quality.write_documents(summary, docs, written_command(context))
    if as_json:
        print_json(summary)
        return
    for table in bench.quality_tables(summary):
        show(table)
    print(bench.quality.context_line(summary))
    if page:
        print(f"written: {page}")
