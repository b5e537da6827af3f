"""The page that a run leaves, with its plots."""

from pathlib import Path
from typing import Any

from foveate.bench.quality.documents import check_documents
from foveate.bench.speed.markdown import as_markdown

PAGE = "performance.md"

__all__ = ["PAGE", "check_documents", "write_documents"]


def write_documents(data: dict[str, Any], folder: Path, command: str) -> Path:
    """Write the page and its plots into a folder; the page's path.

    Args:
        data: as `summarise` returns it.
        folder: as `check_documents` found it.
        command: what writes it again.
    """
    from foveate.bench.speed.plots import draw_plots

    path = folder / PAGE
    path.write_text(as_markdown(data, command, draw_plots(data, folder)), encoding="utf-8")
    return path
