"""Results kept as JSON lines: the settings in the first, then one line per result; a cut last line is dropped."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from foveate.errors import InvalidInputs

T = TypeVar("T")


@contextmanager
def locked(folder: Path | None, file: str) -> Iterator[None]:
    """Keep other runs from writing results into a folder, which is made if there is none.

    The system drops the lock of a process that dies. What the file holds is read once, so that a damaged line is
    known before anything runs.

    Args:
        folder: None keeps no results, and locks nothing.
        file: the file's name.

    Raises:
        InvalidInputs: another run writes there, it cannot be written, or a line is damaged.
    """
    if folder is None:
        yield
        return
    lock = FileLock(folder / f".{file}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InvalidInputs(
            f"results {str(folder / file)!r}: another run writes there; wait for its end, or give another --out"
        ) from error
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        if (folder / file).exists():
            _entries(folder / file)
        yield
    finally:
        lock.release()


def read_lines(path: Path, settings: dict[str, Any], make: Callable[[dict[str, Any]], T]) -> list[T]:
    """The results in a file that was made with the same settings; folder and file are made if there are none.

    Args:
        path: of the file.
        settings: what the results depend on.
        make: a result from its line; raises a TypeError, ValueError or KeyError where the line holds none.

    Raises:
        InvalidInputs: it cannot be written, holds something else, or was made with other settings.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        entries = _entries(path)
        if not entries:
            path.write_text(json.dumps(settings) + "\n", encoding="utf-8")
    except OSError as error:
        raise _unwritable(path, error) from error
    known, *rest = entries or [settings]
    _check_same(path, known, settings)
    results = []
    for number, entry in enumerate(rest, start=2):
        try:
            results.append(make(entry))
        except (TypeError, ValueError, KeyError) as error:
            raise _damaged(path, number, "not a result of this version") from error
    return results


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


def _entries(path: Path) -> list[Any]:
    """What the lines hold.

    Raises:
        OSError: it cannot be read and written.
        InvalidInputs: a line is damaged.
    """
    entries = []
    for number, line in enumerate(_whole_lines(path), start=1):
        try:
            entries.append(json.loads(line.decode("utf-8-sig")))
        except ValueError as error:  # bytes that are no UTF-8 included
            raise _foreign(path) if number == 1 else _damaged(path, number, "not JSON") from error
    return entries


def _whole_lines(path: Path) -> list[bytes]:
    """All lines; a last one without its end, as a killed run leaves it, is cut off the file."""
    with path.open("ab+") as file:
        file.seek(0)
        lines = file.readlines()
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
            file.truncate(sum(map(len, lines)))
    return lines


def _check_same(path: Path, known: Any, settings: dict[str, Any]) -> None:
    if not isinstance(known, dict) or set(known) != set(settings):
        raise _foreign(path)
    for name, value in settings.items():
        if known[name] != value:
            raise InvalidInputs(
                f"results {str(path)!r}: made with {name} {_short(known[name])}, not {_short(value)}; results of "
                "both are not mixed: give another --out"
            )


def _foreign(path: Path) -> InvalidInputs:
    return InvalidInputs(f"results {str(path)!r}: not a file of earlier results; give another --out")


def _damaged(path: Path, number: int, reason: str) -> InvalidInputs:
    return InvalidInputs(
        f"results {str(path)!r}, line {number}: {reason}; delete that line to go on (what it held is done again), "
        "or give another --out"
    )


def _unwritable(path: Path, error: OSError) -> InvalidInputs:
    return InvalidInputs(f"results {str(path)!r}: cannot be read or written ({error.strerror})")


def _short(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else repr(value)
