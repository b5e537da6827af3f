"""What can be known of arguments before torch is loaded: names of methods, budgets, files."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from foveate.budget import Budget
from foveate.errors import InvalidInputs, unknown

FACTS = Path(__file__).with_name("methods.json")  # written by tools/methods_table.py, compared in tests


@cache
def described_methods() -> list[dict[str, Any]]:
    """Name, class, options with defaults, signals, families, facts and source of every method."""
    rows: list[dict[str, Any]] = json.loads(FACTS.read_text(encoding="utf-8"))["methods"]
    return rows


def check_methods(text: str | None) -> None:
    """Refuse names that no method has; options are read with the methods themselves.

    Raises:
        InvalidOption: such a name.
    """
    rows = described_methods()
    known = {word.lower() for row in rows for word in (row["name"], row["class"])} | {"none"}
    for part in [] if text is None else text.split(","):
        name = part.partition(":")[0].strip()
        if name.lower() not in known and ("=" not in part or ":" in part):
            raise unknown("method", name, [row["name"] for row in rows])


def check_budgets(text: str) -> None:
    """Refuse what is no budget.

    Raises:
        InvalidBudget: one of them is none.
    """
    for part in text.split(","):
        Budget.parse(part.strip())


def check_file(what: str, path: str | Path | None) -> None:
    """Refuse a file that is not there.

    Raises:
        InvalidInputs: there is no such file, or it is an address.
    """
    if isinstance(path, str) and "://" in path:
        raise InvalidInputs(f"{what} {path!r}: an address; allowed is a file")
    if path is not None and not Path(path).exists():
        raise InvalidInputs(f"{what} {str(path)!r}: no such file")
