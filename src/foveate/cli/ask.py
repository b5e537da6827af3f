"""``foveate ask``: one question about one image."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveate.bench.defaults import COMPARED, COMPARED_BUDGETS, MINI
from foveate.bench.documents import check_writable
from foveate.cli.names import check_budgets, check_file, check_methods
from foveate.cli.options import JsonFlag, ModelOption
from foveate.cli.output import print_json, show
from foveate.cli.telling import telling
from foveate.errors import InvalidInputs

if TYPE_CHECKING:
    from PIL import Image

    from foveate.bench import Answer


def ask(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="An image file.")],  # a Path would eat slashes
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="A question about it.")],
    model: ModelOption = MINI,
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
    method = (COMPARED if compare else "spare") if method is None else method
    keep = (COMPARED_BUDGETS if compare else "64") if keep is None else keep
    target = draw_to or (Path("foveate.png") if compare else None)
    check_file("image", image)
    check_budgets(keep)
    check_methods(method)
    if not question.strip():
        raise InvalidInputs(f"question {question!r}: it is empty; allowed is text")
    if target:
        _check_picture(target, image)

    with telling() as told:
        told("loading")
        from foveate import bench, draw
        from foveate.pictures import load_picture

        arms = bench.parse_arms(method, keep)
        if compare:
            arms = list(dict.fromkeys([bench.all_tokens(), *arms]))
        picture = load_picture(image)
        vlm, processor = bench.load(model)
        inputs = bench.requests(processor, [picture], [question])
        answers = list(bench.ask(vlm, processor, inputs, arms, max_new_tokens, picture.size, told))
        if target:
            seen = draw.seen_image(picture, inputs["pixel_values"], processor)
            _save(_sheet(seen, question, answers), target)
        hardware = f"one run after a warm-up, {bench.machine(vlm.device)}"
    if as_json:
        context = {"model": model, "image": image, "question": question, "machine": hardware}
        picture_path = None if target is None else str(target)
        print_json({**context, "answers": bench.as_answers(answers), "picture": picture_path})
    else:
        _print_answers(question, answers, target, hardware)


def _check_picture(path: Path, image: str) -> None:
    """Refuse early what cannot be written late.

    Raises:
        InvalidInputs: a kind of picture that cannot be written, no such folder, or the image that is asked about.
    """
    from PIL import Image

    shown = f"--draw {str(path)!r}"
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise InvalidInputs(f"{shown}: allowed are names such as kept.png")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise InvalidInputs(f"{shown}: cannot be written, there is no such folder")
    if path.exists() and os.path.samefile(path, image):
        raise InvalidInputs(f"{shown}: is the image itself; allowed is another name")
    try:
        check_writable(path.absolute().parent)
    except OSError as error:
        raise InvalidInputs(f"{shown}: cannot be written ({error.strerror})") from error


def _save(picture: "Image.Image", path: Path) -> None:
    try:
        picture.save(path)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInputs(f"--draw {str(path)!r}: cannot be written ({error})") from error


def _sheet(seen: "Image.Image", question: str, answers: list["Answer"]) -> "Image.Image":
    """What the model saw, then what each arm kept of it."""
    from foveate import draw

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


def _print_answers(question: str, answers: list["Answer"], target: Path | None, hardware: str) -> None:
    from foveate import bench

    print(question)
    show(bench.answers_table(answers))
    print(f"seconds: {hardware}; select includes the text relevance")
    if target:
        print(f"kept tokens: {target}")
