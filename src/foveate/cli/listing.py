"""``foveate methods`` and ``foveate models``."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from foveate.cli.names import described_methods
from foveate.cli.options import JsonFlag
from foveate.cli.output import print_json, show

WIDTH = 80
# Of the columns at least: their longest words are never cut.
COLUMNS = {"name": 12, "options": 21, "needs": 18, "vLLM": 4, "source": 16}


def list_methods(as_json: JsonFlag = False) -> None:
    """List the methods, with their options and defaults."""
    rows = described_methods()
    if as_json:
        print_json({"methods": rows})
        return
    Console(width=WIDTH).print(_methods_table(rows))
    print("vLLM: whether the plugin serves it as it is. Families and more: --json.")


def list_models(as_json: JsonFlag = False) -> None:
    """List the model families that are supported, and the bundled model."""
    from foveate import bench, mini
    from foveate.families import FAMILIES

    families = [
        {"model_type": name, "name": family.name, "towers": list(family.towers)}
        for name, family in FAMILIES.items()
    ]
    bundled = {"name": "mini", "model_type": "llava", "path": str(mini.PATH)}
    if as_json:
        print_json({"families": families, "bundled": [bundled]})
        return
    show(bench.models_table(families))
    print(f"bundled: mini (llava), a small model trained on drawn scenes, in {mini.PATH}")


def _methods_table(rows: list[dict[str, Any]]) -> Table:
    """One row per method, an option a line."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name, width in COLUMNS.items():
        table.add_column(name, min_width=width, overflow="fold")
    for row in rows:
        options = "\n".join(f"{name}={_written(value)}" for name, value in row["options"].items())
        needs = ", ".join(row["needs"])
        table.add_row(row["name"], options, needs, "yes" if row["servable"] else "no", row["source"])
    return table


def _written(value: Any) -> str:
    """As `--method` takes it."""
    return "+".join(map(str, value)) if isinstance(value, list) else str(value).lower()
