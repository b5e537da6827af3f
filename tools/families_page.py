"""Write docs/families.md from the table of families and from what the tests found.

pytest tests/test_families.py tests/test_family_*.py tests/test_turns.py --junitxml build/families.xml
python tools/families_page.py build/families.xml
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import transformers

from foveate.families import FAMILIES

PAGE, TEMPLATE = Path("docs/families.md"), Path(__file__).parent / "families.md"
# What tests prove, by the beginning of their names, and the heading it gets.
PROVEN = {
    "test_logits_equal_the_masked_full_prompt": "forward",
    "test_compact_positions": "compact",
    "test_generation_equals_the_masked_full_prompt": "generate",
    "test_mixed_": "mixed",
    "test_control_": "controls differ",
    "test_received_attention": "attention",
    "test_a_patchs_score": "patch to token",
    "test_a_line_of_the_picture": "grids",
    "test_a_total_is_shared": "budgets",
    "test_a_second_turn": "turns",
    "test_turn_after_turn": "turns",
    "test_stock_turns": "turns",
    "test_going_on": "turns",
}
NOTHING = "–"  # nothing is tested
ENTRY = re.compile(r"\[([a-z0-9_]+?)(?:-|\])")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="pytest's --junitxml")
    options = parser.parse_args()
    PAGE.write_text(page(counts_of(options.results)), encoding="utf-8")


def counts_of(results: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Per entry of the zoo and heading: (passed, run)."""
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for case in ElementTree.parse(results).getroot().iter("testcase"):
        name = case.attrib["name"]
        heading = next((title for start, title in PROVEN.items() if name.startswith(start)), None)
        entry = ENTRY.search(name)
        if heading and entry:
            found[entry[1]][heading][0] += not len(case)
            found[entry[1]][heading][1] += 1
    return {entry: {title: (a, b) for title, (a, b) in row.items()} for entry, row in found.items()}


def page(counts: dict[str, dict[str, tuple[int, int]]]) -> str:
    """The whole page."""
    template = TEMPLATE.read_text(encoding="utf-8")
    return template.format(families=families(), proofs=proofs(counts), version=transformers.__version__)


def families() -> str:
    """The table of families."""
    lines = ["| `model_type` | family | takes | tokens of an image or video | locked |", "|---|---|---|---|---|"]
    for kind, family in FAMILIES.items():
        takes = " and ".join(f"{name}s" for name in family.kinds)
        lines.append(f"| `{kind}` | {family.name} | {takes} | {family.tokens} | {family.locks} |")
    return "\n".join(lines)


def proofs(counts: dict[str, dict[str, tuple[int, int]]]) -> str:
    """What passed, per entry."""
    headings = list(dict.fromkeys(PROVEN.values()))
    lines = [f"| tested model | {' | '.join(headings)} |", f"|---|{'---|' * len(headings)}"]
    for entry, row in counts.items():
        cells = [f"{row[title][0]}/{row[title][1]}" if title in row else NOTHING for title in headings]
        lines.append(f"| {entry} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
