"""The commands, in one table."""

from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from foveate import __version__
from foveate.cli.ask import ask
from foveate.cli.estimate import estimate
from foveate.cli.line import one_line
from foveate.cli.listing import list_methods, list_models
from foveate.cli.quality import measure_quality
from foveate.cli.serve import measure_server
from foveate.cli.speed import measure_speed
from foveate.errors import InvalidInputs

COMMANDS: dict[str, Callable[..., None]] = {
    "ask": ask,
    "estimate": estimate,
    "methods": list_methods,
    "models": list_models,
}
BENCHMARKS: dict[str, Callable[..., None]] = {
    "quality": measure_quality,
    "speed": measure_speed,
    "serve": measure_server,
}


class _OneLine(TyperGroup):
    """Errors on purpose end in one line on standard error and exit code 2."""

    def make_context(self, info_name: Any, args: list[str], *more: Any, **extra: Any) -> Any:
        if not args:  # the help is raised as an error
            return super().make_context(info_name, args, *more, **extra)
        with one_line():
            _check_text(args)
            return super().make_context(info_name, args, *more, **extra)

    def invoke(self, ctx: Any) -> Any:
        with one_line():
            return super().invoke(ctx)


def _group(about: str) -> typer.Typer:
    return typer.Typer(
        cls=_OneLine,
        help=about,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def _check_text(args: list[str]) -> None:
    """Refuse bytes that are no text: they can be neither shown nor asked.

    Raises:
        InvalidInputs: an argument holds some.
    """
    for argument in args:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise InvalidInputs(f"argument {argument!r}: it holds bytes that are not UTF-8") from error


def _print_version(asked: bool) -> None:
    if asked:
        print(f"foveate {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Keep only the visual tokens a vision-language model needs."""


app = _group("Keep only the visual tokens a vision-language model needs.")
app.callback()(_options)
_benchmarks = _group("Measure what a method costs and saves.")
app.add_typer(_benchmarks, name="bench")
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
for _name, _command in BENCHMARKS.items():
    _benchmarks.command(_name)(_command)
