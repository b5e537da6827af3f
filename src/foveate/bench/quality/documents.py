"""The files that a run leaves: the summary, and the page with its plots."""

import json
from pathlib import Path
from typing import Any

from foveate.bench.defaults import Quality
from foveate.bench.quality.markdown import as_markdown
from foveate.bench.quality.suites import DEFAULT

SUMMARY = "summary.json"


def write_summary(data: dict[str, Any], folder: Path) -> Path:
    """Write the summary into a folder; its path."""
    path = folder / SUMMARY
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def write_documents(data: dict[str, Any], folder: Path, command: str) -> Path:
    """Write the page and, where the default suite ran, its plots into a folder; the page's path.

    Args:
        data: as `summarise` returns it.
        folder: exists.
        command: what writes it again.
    """
    from foveate.bench.quality.plots import draw_plots

    plots = draw_plots(data, folder) if DEFAULT in data["suites"] else {}
    path = folder / Quality.PAGE
    path.write_text(as_markdown(data, command, plots), encoding="utf-8")
    return path
