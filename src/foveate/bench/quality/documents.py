"""The files that a run leaves: the summary, and the page with its plots."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from foveate.bench.quality.markdown import as_markdown
from foveate.bench.quality.suites import DEFAULT
from foveate.errors import InvalidInputs

SUMMARY, PAGE = "summary.json", "quality.md"


def check_documents(folder: Path) -> None:
    """Refuse early what cannot be written late.

    Raises:
        InvalidInputs: no such folder, or matplotlib is not installed.
    """
    if not folder.is_dir():
        raise InvalidInputs(f"--docs {str(folder)!r}: there is no such folder")
    if find_spec("matplotlib") is None:
        raise InvalidInputs('--docs draws plots, which need matplotlib: pip install "foveate[plot]"')


def write_summary(data: dict[str, Any], folder: Path) -> Path:
    """Write the summary into a folder; its path."""
    path = folder / SUMMARY
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def write_documents(data: dict[str, Any], folder: Path, command: str) -> Path:
    """Write the page and, where the default suite ran, its plots into a folder; the page's path.

    Args:
        data: as `summarise` returns it.
        folder: as `check_documents` found it.
        command: what writes it again.
    """
    from foveate.bench.quality.plots import draw_plots

    plots = draw_plots(data, folder) if DEFAULT in data["suites"] else {}
    path = folder / PAGE
    path.write_text(as_markdown(data, command, plots), encoding="utf-8")
    return path
