"""What the commands print, and what they write in pages: tables, JSON, the command itself."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table


def show(table: Table) -> None:
    """Print a table in its own width, however narrow the terminal is: nothing is cut."""
    Console(width=Console(width=1000).measure(table).maximum).print(table)


def print_json(data: dict[str, Any]) -> None:
    """Print one JSON object in one line."""
    print(json.dumps(data))


def written_command(context: typer.Context, *without: str) -> str:
    """The command that runs, for the reader: what differs from the defaults, of absolute paths the last part.

    Args:
        context: of the command.
        without: names of options that are told elsewhere.
    """
    parts: list[str] = []
    level: Any = context
    while level.parent is not None:
        parts.insert(0, level.info_name)
        level = level.parent
    parts.insert(0, "foveate")  # however it was called, such as by python -m
    for option in context.command.params:
        value = context.params.get(option.name or "")
        if value not in (None, False, option.default) and option.name not in without:
            values = [str(one) for one in (value if isinstance(value, tuple) else (value,))]
            shown = [Path(one).name if Path(one).is_absolute() else one for one in values]
            named = [] if option.param_type_name == "argument" else [option.opts[0]]
            parts += [*named, *([] if value is True else shown)]
    return shlex.join(parts)


def may_overwrite(path: Path) -> bool:
    """Ask on a terminal; without one, no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    return typer.confirm(f"{path} was not written by foveate. Overwrite it?", err=True)
