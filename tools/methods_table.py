"""What is said of the methods, from the table in the code: in docs/methods.md, and for `foveate methods`.

python tools/methods_table.py
"""

import json
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from foveate.cli.names import FACTS
from foveate.families import DOWN_AND_UP, FAMILIES
from foveate.methods import INSIDE, METHODS, Inside, Method, Resizing
from foveate.vllm.choice import refused

PAGE = Path(__file__).parent.parent / "docs" / "methods.md"
BEGIN, END = "<!-- tools/methods_table.py -->", "<!-- end -->"


def main() -> None:
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END, 1)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")
    FACTS.write_text(facts(), encoding="utf-8")


def facts() -> str:
    """What `foveate methods` reads, so that it need not load torch."""
    return json.dumps({"methods": describe_methods()}, indent=1, ensure_ascii=False) + "\n"


def table() -> str:
    """The table, as Markdown."""
    lines = [
        "| name | class | needs | families | acts | complexity | nested | servable | source |",
        "|---" * 9 + "|",
    ]
    for row in describe_methods():
        options = ", ".join(f"{name}={value!r}" for name, value in row["options"].items()).replace("'", '"')
        needs = ", ".join([*row["needs"], *(f"[{signal}]" for signal in row["wants"])]) or "-"
        cells = [
            f"`{row['name']}`",
            f"`{row['class']}({options})`",
            needs,
            row["families"],
            row["acts"],
            row["complexity"],
            *("yes" if row[flag] else "no" for flag in ("nested", "servable")),
            row["source"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def describe_methods() -> list[dict[str, Any]]:
    """Name, class, options with defaults, signals, families, facts and source of every method.

    ``servable``: by the plugin for vLLM, with its options as they are.
    """
    rows = []
    kinds: dict[str, type[Method] | type[Inside]] = {**METHODS, **INSIDE}
    for name, method in kinds.items():
        default = method()
        rows.append(
            {
                "name": name,
                "class": method.__name__,
                "options": {field.name: getattr(default, field.name) for field in _in_order(method)},
                "needs": sorted(signal.value for signal in default.needs),
                "wants": sorted(signal.value for signal in default.wants),
                "families": _families(default),
                "acts": method.acts,
                "complexity": method.complexity,
                "nested": method.nested,
                "servable": refused(default) is None,
                "source": method.source,
            }
        )
    return rows


def _in_order(method: type[Method] | type[Inside]) -> list[Field[Any]]:
    """The options as a call takes them: those by name alone come last."""
    return sorted(fields(method), key=lambda field: field.kw_only is True)


def _families(method: Method | Inside) -> str:
    """Which families the method can serve, with its options as they are."""
    if isinstance(method, Inside):
        return f"all but {', '.join(name for name, family in FAMILIES.items() if not family.drops_inside)}"
    if isinstance(method, Resizing):
        others = [name for name, family in FAMILIES.items() if family.resizes == DOWN_AND_UP]
        return f"all; {DOWN_AND_UP}: {', '.join(others)}"
    return "all"  # whose towers have a CLS token or not: `auto` options take what there is


if __name__ == "__main__":
    main()
