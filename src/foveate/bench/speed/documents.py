"""The page that a run leaves, with its plots."""

from pathlib import Path
from typing import Any

from foveate.bench.defaults import Speed
from foveate.bench.speed.markdown import as_markdown


def write_documents(data: dict[str, Any], folder: Path, command: str) -> Path:
    """Write the page and its plots into a folder; the page's path.

    Args:
        data: as `summarise` returns it.
        folder: exists.
        command: what writes it again.
    """
    from foveate.bench.speed.plots import draw_plots

    path = folder / Speed.PAGE
    path.write_text(as_markdown(data, command, draw_plots(data, folder)), encoding="utf-8")
    return path
