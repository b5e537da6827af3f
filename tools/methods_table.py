"""The table of docs/methods.md that lists the methods, from the table in the code.

python tools/methods_table.py
"""

from pathlib import Path

from foveate.bench import describe_methods

PAGE = Path(__file__).parent.parent / "docs" / "methods.md"
BEGIN, END = "<!-- tools/methods_table.py -->", "<!-- end -->"


def main() -> None:
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END, 1)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


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


if __name__ == "__main__":
    main()
