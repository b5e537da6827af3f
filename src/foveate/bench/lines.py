"""Results kept as JSON lines: the settings in the first, then one line per result; a cut last line is dropped."""

import json
from pathlib import Path
from typing import Any

from foveate.errors import InvalidInputs


def read_lines(path: Path, settings: dict[str, Any]) -> list[Any]:
    """The results in a file that was made with the same settings; folder and file are made if there are none.

    Raises:
        InvalidInputs: it cannot be written, holds something else, or was made with other settings.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = _whole_lines(path)
        if not lines:
            path.write_text(json.dumps(settings) + "\n", encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputs(f"results {str(path)!r}: cannot be read or written ({error})") from error
    try:
        known, *rest = [json.loads(line.removeprefix("\ufeff")) for line in lines] or [settings]
    except ValueError as error:
        raise foreign(path) from error
    _check_same(path, known, settings)
    return rest


def add_line(path: Path, entry: dict[str, Any]) -> None:
    """Write one more result, on disk at once.

    Raises:
        InvalidInputs: it cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
    except OSError as error:
        raise InvalidInputs(f"results {str(path)!r}: cannot be written ({error.strerror})") from error


def foreign(path: Path) -> InvalidInputs:
    """The error for a file that holds something else."""
    return InvalidInputs(f"results {str(path)!r}: not a file of earlier results")


def _whole_lines(path: Path) -> list[str]:
    with path.open("a+", encoding="utf-8", newline="\n") as file:
        file.seek(0)
        lines = file.readlines()
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
            file.truncate(sum(len(line.encode()) for line in lines))
    return lines


def _check_same(path: Path, known: Any, settings: dict[str, Any]) -> None:
    if not isinstance(known, dict) or set(known) != set(settings):
        raise foreign(path)
    for name, value in settings.items():
        if known[name] != value:
            raise InvalidInputs(
                f"results {str(path)!r}: made with {name} {_short(known[name])}, not {_short(value)}; results of "
                "both are not mixed: give another --out"
            )


def _short(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else repr(value)
