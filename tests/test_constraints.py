"""What is pinned, against what is promised."""

import importlib
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()


def pins(name):
    return dict(line.split("==") for line in (ROOT / name).read_text().splitlines())


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-lowest.txt", "constraints-vllm.txt"])
def test_pins_are_plain(name):
    """So that they hold for every platform, index and build of torch."""
    lines = (ROOT / name).read_text().splitlines()
    names = [canonicalize_name(line.split("==")[0]) for line in lines]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    assert names == sorted(set(names))
    assert [name for name in names if name == "foveate" or name.startswith(("nvidia", "cuda"))] == []


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-lowest.txt"])
def test_pins_are_allowed(name):
    installed = {canonicalize_name(key): version for key, version in pins(name).items()}
    extras = (PROJECT["optional-dependencies"][extra] for extra in ("nouns", "plot", "dev"))
    for requirement in map(Requirement, [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]):
        assert installed[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_the_lowest_pins_are_the_floors(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    floors = importlib.import_module("floors").floors
    lowest = {canonicalize_name(key): version for key, version in pins("constraints-lowest.txt").items()}
    promised = dict(line.split("==") for line in floors(PROJECT))
    assert {canonicalize_name(name) for name in promised} <= lowest.keys()
    assert promised == {name: lowest[canonicalize_name(name)] for name in promised}


def test_the_readme_says_the_range():
    low, high = pins("constraints-lowest.txt"), pins("constraints.txt")
    said = (ROOT / "README.md").read_text()
    for name in ("transformers", "torch"):
        assert f"{name} {low[name]} to {high[name]}" in said


def test_every_environment_is_pinned():
    """But that of the newest versions, and those from which the pins are made."""
    recipes = re.findall(r"^([^\s#][^\n]*):[^=\n]*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    unpinned = {
        target
        for target, recipe in recipes
        if any("$(INSTALL)" in line and "-c constraints" not in line for line in recipe.splitlines())
    }
    assert unpinned == {"newest", "constraints"}
