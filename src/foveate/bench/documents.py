"""The folder that a page is written into: checked before a run, so that nothing is lost after it."""

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from foveate.errors import InvalidInputs

MARK = "Written by `foveate "  # every page has it near its top


def check_documents(folder: Path, page: str, overwrite: Callable[[Path], bool] = lambda path: False) -> None:
    """Make the folder, and refuse early what cannot be written late.

    Args:
        folder: made if there is none.
        page: the file's name.
        overwrite: is asked whether a page that no run of ours wrote may be overwritten.

    Raises:
        InvalidInputs: the folder cannot be written, the page is not ours to overwrite, or matplotlib is missing.
    """
    if find_spec("matplotlib") is None:
        raise InvalidInputs('--docs draws plots, which need matplotlib: pip install "foveate[plot]"')
    path = folder / page
    if folder.exists() and not folder.is_dir():
        raise InvalidInputs(f"--docs {str(folder)!r}: a file; allowed is a folder, into which {page} is written")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder)
        written = path.exists() and MARK not in path.read_bytes().decode(errors="replace")
    except OSError as error:
        raise InvalidInputs(f"--docs {str(folder)!r}: cannot be written ({error.strerror})") from error
    if written and not overwrite(path):
        raise InvalidInputs(
            f"--docs {str(folder)!r}: foveate did not write the {page} there, so it stays; give another folder"
        )


def check_writable(folder: Path) -> None:
    """Write a file into a folder, and take it away.

    Raises:
        OSError: that cannot be done.
    """
    with tempfile.TemporaryFile(dir=folder):
        pass
