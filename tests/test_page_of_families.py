"""docs/families.md is that of the table of families, of the zoo and of the tests that it counts.

Not among the tests that `make families` counts: those must pass before it writes the page that is read here.
"""

import importlib
import re
from collections import defaultdict
from math import prod
from pathlib import Path

import pytest
from packaging.version import Version

from test_families import VERSION
from zoo import MIXED, ZOO

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
WRITTEN_ON = Version(re.search(r"on transformers ([0-9.]+[0-9])", PAGE)[1])
COUNTED = ["test_families", "test_turns", *(path.stem for path in Path(__file__).parent.glob("test_family_*.py"))]


@pytest.fixture
def families_page(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("families_page")


def cases(families_page):
    """Per entry of the zoo and heading, how many tests there are."""
    found = defaultdict(lambda: defaultdict(int))
    functions = [item for module in COUNTED for item in vars(importlib.import_module(module)).items()]
    for test, function in {name: function for name, function in functions if name.startswith("test_")}.items():
        marks = [mark.args for mark in getattr(function, "pytestmark", ()) if mark.name == "parametrize"]
        heading = next((title for start, title in families_page.PROVEN.items() if test.startswith(start)), None)
        for name in next((values for argument, values in marks if argument == "name"), ()) if heading else ():
            found[name][heading] += prod(len(values) for argument, values in marks if argument != "name")
    return {name: dict(found[name]) for name in ZOO}


def test_the_table_of_families_is_on_the_page(families_page):
    assert families_page.families() in PAGE


@pytest.mark.skipif(VERSION < WRITTEN_ON, reason=f"the page is of transformers {WRITTEN_ON}, which can do more")
def test_the_page_names_every_entry_and_test_and_all_passed(families_page):
    counts = {name: {title: (n, n) for title, n in row.items()} for name, row in cases(families_page).items()}
    assert families_page.proofs(counts) in PAGE


@pytest.mark.skipif(VERSION < WRITTEN_ON, reason=f"the page is of transformers {WRITTEN_ON}, which can do more")
def test_what_is_not_tested_is_what_the_page_says(families_page):
    headings = {*families_page.PROVEN.values()}
    missing = {(name, title) for name, row in cases(families_page).items() for title in headings - row.keys()}
    unmixed = {(name, "mixed") for name in ZOO if name not in MIXED}
    assert missing == {("paligemma", "turns"), *unmixed}
