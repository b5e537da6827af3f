"""The command ``foveate``: parsing and printing only."""

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperGroup

from foveate import bench, draw, mini
from foveate.bench.estimate.command import estimate
from foveate.errors import FoveateError, InvalidInputs
from foveate.families import FAMILIES

if TYPE_CHECKING:
    from PIL import Image

# Click's base of all errors of a command line; typer carries a click of its own since 0.2x.
COMMAND_ERROR: type[Exception] = typer.BadParameter.__mro__[2]
COMPARED = "spare,resprune"


class _OneLine(TyperGroup):
    """Errors on purpose end in one line on standard error and exit code 2."""

    def make_context(self, info_name: Any, args: list[str], *more: Any, **extra: Any) -> Any:
        if not args:  # the help is raised as an error
            return super().make_context(info_name, args, *more, **extra)
        with _one_line():
            return super().make_context(info_name, args, *more, **extra)

    def invoke(self, ctx: Any) -> Any:
        with _one_line():
            return super().invoke(ctx)


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except FoveateError as error:
        message = str(error)
    except COMMAND_ERROR as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
    else:
        return
    print("foveate: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


app = typer.Typer(
    cls=_OneLine,
    help="Keep only the visual tokens a vision-language model needs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

measure = typer.Typer(cls=_OneLine, help="Measure what a method costs and saves.", no_args_is_help=True)
app.add_typer(measure, name="bench")
app.command()(estimate)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
ModelOption = Annotated[str, typer.Option(help="Checkpoint path or id; mini is the bundled one.")]


def main() -> None:
    """Entry point of the command."""
    app()


@app.command()
def ask(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="A question about it.")],
    model: ModelOption = bench.MINI,
    method: Annotated[
        str | None, typer.Option(help="Such as spare, none, or spare:beta=0.5.", show_default="spare")
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="Tokens or fractions: 64, 0.11, 64,32.", show_default="64")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="All tokens, SPARE and ResPrune, at 64 and 32.")
    ] = False,
    draw_to: Annotated[
        Path | None,
        typer.Option(
            "--draw", help="Write a picture of the kept tokens.", show_default="foveate.png with --compare"
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of the answer.")] = 64,
    as_json: JsonFlag = False,
) -> None:
    """Ask about an image, with the tokens that a method keeps."""
    default_method, default_keep = (COMPARED, "64,32") if compare else ("spare", "64")
    arms = bench.parse_arms(default_method if method is None else method, default_keep if keep is None else keep)
    if compare:
        arms = list(dict.fromkeys([bench.all_tokens(), *arms]))
    target = draw_to or (Path("foveate.png") if compare else None)
    if target:
        _check_picture(target)
    picture = bench.read_image(image)
    vlm, processor = bench.load(model)
    inputs = bench.requests(processor, [picture], [question])
    answers = list(bench.ask(vlm, processor, inputs, arms, max_new_tokens, picture.size))
    if target:
        seen = draw.seen_image(picture, inputs["pixel_values"], processor)
        _save(_sheet(seen, question, answers), target)
    hardware = f"one run after a warm-up, {bench.machine(vlm.device)}"
    if as_json:
        context = {"model": model, "image": str(image), "question": question, "machine": hardware}
        picture_path = None if target is None else str(target)
        print(json.dumps({**context, "answers": bench.as_answers(answers), "picture": picture_path}))
    else:
        _print_answers(question, answers, target, hardware)


@measure.command("quality")
def measure_quality(
    context: typer.Context,
    suite: Annotated[
        str, typer.Option(help=f"{bench.quality.DEFAULT}, {', '.join(bench.quality.SUITES)}; several, or all.")
    ] = bench.quality.DEFAULT,
    methods: Annotated[
        str | None,
        typer.Option(help="What the default suite compares, beside the controls.", show_default="all there are"),
    ] = None,
    keep: Annotated[str, typer.Option(help="Budgets, such as 192,64 or 0.11.")] = bench.quality.BUDGETS,
    questions: Annotated[int, typer.Option(help="How many, each about a scene of its own.")] = 400,
    split: Annotated[
        str | None,
        typer.Option(help="Of mini's scenes: test to report, dev to tune, or fresh.", show_default="test"),
    ] = None,
    model: ModelOption = bench.MINI,
    clip: Annotated[str | None, typer.Option(help="CLIP pair of its vision tower: path or id.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Questions of your own: JSONL of image, question, answers, skill.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Keep results in this folder; a stopped run goes on from there.")
    ] = None,
    docs: Annotated[Path | None, typer.Option(help="Write quality.md and its plots into this folder.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure which methods answer how much with how few tokens, beside every control."""
    benchmark = bench.quality.Benchmark.make(
        suite=suite,
        methods=methods,
        keep=keep,
        questions=questions,
        split=split,
        data=data,
        last_word=model == bench.MINI,
    )
    if docs:
        bench.quality.check_documents(docs)
    vlm, processor = bench.load(model)
    plan = benchmark.plan(vlm, processor, clip)
    store = benchmark.store(vlm, out, clip)
    bar = _progress()
    task = bar.add_task("", total=len(plan.arms) * len(benchmark.items))
    with bar:
        summary = benchmark.measure(
            plan,
            store,
            vlm,
            processor,
            name=model,
            clip=clip,
            progress=lambda arm, answers: bar.update(task, description=arm, advance=answers),
        )
    if out:
        bench.quality.write_summary(summary, out)
    page = docs and bench.quality.write_documents(summary, docs, _command(context))
    if as_json:
        print(json.dumps(summary))
        return
    for table in bench.quality_tables(summary):
        _show(table)
    print(bench.quality.context_line(summary))
    if page:
        print(f"written: {page}")


@measure.command("speed")
def measure_speed(
    context: typer.Context,
    preset: Annotated[
        str | None,
        typer.Option(help=f"Random weights at real dimensions: {', '.join(bench.speed.PRESETS)}."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Checkpoint path or id, in place of a preset.", show_default="mini")
    ] = None,
    methods: Annotated[str, typer.Option(help="Beside stock and our path with all tokens.")] = bench.speed.METHODS,
    keep: Annotated[str, typer.Option(help="Budgets, such as 192,64 or 0.11.")] = bench.speed.BUDGETS,
    batch: Annotated[str, typer.Option(help="Rows, one image each, such as 1,4.")] = bench.speed.BATCHES,
    sizes: Annotated[
        str | None,
        typer.Option(
            help="Visual tokens per image, where the preset's tower takes several.", show_default="its own"
        ),
    ] = None,
    text: Annotated[
        int | None,
        typer.Option(help="Tokens of text in a preset's prompt.", show_default=str(bench.speed.TEXT)),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length of every answer.")] = bench.speed.NEW_TOKENS,
    attention: Annotated[
        str, typer.Option(help=f"Of every arm: {', '.join(bench.speed.ATTENTIONS)}.")
    ] = bench.speed.ATTENTIONS[0],
    dtype: Annotated[
        str | None,
        typer.Option(
            help=f"Of every arm: {', '.join(bench.speed.DTYPES)}.", show_default="float32 on a CPU, else bfloat16"
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option(help="Rounds, in each of which every arm passes once.")
    ] = bench.speed.REPEATS,
    warmup: Annotated[int, typer.Option(help="Passes of each arm before.")] = bench.speed.WARMUP,
    clip: Annotated[str | None, typer.Option(help="CLIP pair of a checkpoint's vision tower: path or id.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Keep results in this folder; a stopped run goes on from there.")
    ] = None,
    docs: Annotated[Path | None, typer.Option(help="Write performance.md and its plots into this folder.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure what pruning costs and saves in time and memory, beside stock in the same process."""
    benchmark = bench.speed.Benchmark.make(
        methods=methods,
        keep=keep,
        batch=batch,
        sizes=sizes,
        repeats=repeats,
        warmup=warmup,
        new_tokens=max_new_tokens,
    )
    if docs:
        bench.speed.check_documents(docs)
    subject = benchmark.subject(preset=preset, model=model, text=text, dtype=dtype, attention=attention, clip=clip)
    store = benchmark.store(subject, out)
    bar = _progress()
    task = bar.add_task("", total=benchmark.passes(subject))
    with bar:
        summary = benchmark.measure(
            subject, store, progress=lambda arm, passes: bar.update(task, description=arm, advance=passes)
        )
    page = docs and bench.speed.write_documents(summary, docs, _command(context))
    if as_json:
        print(json.dumps(summary))
        return
    for table in bench.speed.speed_tables(summary):
        _show(table)
    print(bench.speed.context_line(summary))
    if page:
        print(f"written: {page}")


@measure.command("serve")
def measure_server(
    context: typer.Context,
    url: Annotated[str, typer.Argument(help="A running vLLM server, such as http://localhost:8000.")],
    methods: Annotated[str, typer.Option(help="Beside no pruning.")] = bench.serve.METHODS,
    keep: Annotated[str, typer.Option(help="Budgets, such as 192,64 or 0.11.")] = bench.serve.BUDGETS,
    images: Annotated[int, typer.Option(help="Pictures of noise per round.")] = bench.serve.IMAGES,
    questions: Annotated[int, typer.Option(help="Requests about each picture.")] = bench.serve.QUESTIONS,
    concurrency: Annotated[
        str, typer.Option(help="Requests under way at any time, such as 1,4.")
    ] = bench.serve.CONCURRENCY,
    max_new_tokens: Annotated[int, typer.Option(help="Length of every answer.")] = bench.serve.NEW_TOKENS,
    size: Annotated[
        tuple[int, int], typer.Option(help="Pixels of a picture, width and height.")
    ] = bench.serve.SIZE,
    rounds: Annotated[
        int, typer.Option(help="In each, every arm is sent the same requests; from 6 on ratios are judged.")
    ] = bench.serve.ROUNDS,
    timeout: Annotated[float, typer.Option(help="Seconds for a request.")] = bench.serve.TIMEOUT,
    about: Annotated[
        str | None, typer.Option(help="Of the server, for the page: its command, its hardware.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Keep results in this folder; a stopped run goes on from there.")
    ] = None,
    docs: Annotated[Path | None, typer.Option(help="Write serving.md and its plot into this folder.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure a running vLLM server with and without pruning, under the same load."""
    benchmark = bench.serve.Benchmark.make(
        methods=methods,
        keep=keep,
        images=images,
        questions=questions,
        concurrency=concurrency,
        new_tokens=max_new_tokens,
        rounds=rounds,
        size=size,
    )
    if docs:
        bench.serve.check_documents(docs)
    server = bench.serve.Server.find(url, timeout)
    bar = _progress()
    task = bar.add_task("", total=benchmark.requests)
    with bar:
        summary = benchmark.measure(
            server, out, about=about, progress=lambda arm, count: bar.update(task, description=arm, advance=count)
        )
    page = docs and bench.serve.write_documents(summary, docs, _command(context, "about"))
    if as_json:
        print(json.dumps(summary))
        return
    _show(bench.serve.serve_table(summary))
    print(bench.serve.context_line(summary))
    if page:
        print(f"written: {page}")


@app.command("methods")
def list_methods(as_json: JsonFlag = False) -> None:
    """List the methods, with their options and defaults."""
    rows = bench.describe_methods()
    if as_json:
        print(json.dumps({"methods": rows}))
        return
    _show(bench.methods_table(rows))


@app.command("models")
def list_models(as_json: JsonFlag = False) -> None:
    """List the model families that are supported, and the bundled model."""
    families = [
        {"model_type": name, "name": family.name, "towers": list(family.towers)}
        for name, family in FAMILIES.items()
    ]
    bundled = {"name": "mini", "model_type": "llava", "path": str(mini.PATH)}
    if as_json:
        print(json.dumps({"families": families, "bundled": [bundled]}))
        return
    _show(bench.models_table(families))
    print(f"bundled: mini (llava), a small model trained on drawn scenes, in {mini.PATH}")


def _check_picture(path: Path) -> None:
    """Refuse early what cannot be written late.

    Raises:
        InvalidInputs: an unknown kind of picture, or no such folder.
    """
    from PIL import Image

    if path.suffix.lower() not in Image.registered_extensions():
        raise InvalidInputs(f"--draw {str(path)!r}: allowed are names such as kept.png")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise InvalidInputs(f"--draw {str(path)!r}: cannot be written, there is no such folder")


def _save(picture: "Image.Image", path: Path) -> None:
    try:
        picture.save(path)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInputs(f"--draw {str(path)!r}: cannot be written ({error})") from error


def _sheet(seen: "Image.Image", question: str, answers: list[bench.Answer]) -> "Image.Image":
    """What the model saw, then what each arm kept of it."""
    panels = []
    if all(answer.tokens[0] < answer.tokens[1] for answer in answers):
        panels.append(("what the model sees", draw.enlarged(seen, answers[0].views[0].grid)))
    for answer in answers:
        kept, total = answer.tokens
        everything = kept == total
        title = f"all {total} tokens" if everything else f"{answer.arm.title} {kept} of {total}"
        views = draw.kept_views(answer.views, seen)
        several = len(views) > 1
        panels += [
            (f"{title}{f' ({name})' if several else ''}: {answer.text}", picture)
            for name, picture in (views[:1] if everything else views)
        ]
    return draw.contact_sheet(panels, heading=question)


def _print_answers(question: str, answers: list[bench.Answer], target: Path | None, hardware: str) -> None:
    print(question)
    _show(bench.answers_table(answers))
    print(f"seconds: {hardware}; select includes the text relevance")
    if target:
        print(f"kept tokens: {target}")


def _show(table: Table) -> None:
    """Print a table in its own width, however narrow the terminal is: nothing is cut."""
    Console(width=Console(width=1000).measure(table).maximum).print(table)


def _command(context: typer.Context, *without: str) -> str:
    """The command that runs, for the reader: what differs from the defaults, of absolute paths the last part.

    Args:
        context: of the command.
        without: names of options that are told elsewhere.
    """
    parts = context.command_path.split()
    for option in context.command.params:
        value = context.params.get(option.name or "")
        if value not in (None, False, option.default) and option.name not in without:
            values = [str(one) for one in (value if isinstance(value, tuple) else (value,))]
            shown = [Path(one).name if Path(one).is_absolute() else one for one in values]
            named = [] if option.param_type_name == "argument" else [option.opts[0]]
            parts += [*named, *([] if value is True else shown)]
    return shlex.join(parts)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
