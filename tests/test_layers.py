"""Imports point one way: select <- methods <- prune <- {attach, bench, cli, vllm}."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "src" / "foveate"

# Each room, and the rooms of this package it may import from.
NUMBERS = {"errors", "tokens", "budget", "share", "lazy"}
BASE = NUMBERS | {"hf"}
FLOW = BASE | {"select", "methods", "families", "text", "settings"}
PRUNE = FLOW | {"flow", "pruned"}
ALLOWED = {
    "errors": set(),
    "lazy": set(),
    "share": set(),
    "hf": {"errors"},
    "budget": {"errors", "share"},
    "settings": BASE,
    "tokens": {"errors"},
    "select": {"errors"},
    "methods": NUMBERS | {"select"},
    "families": BASE,
    "text": {"errors", "hf"},
    "flow": FLOW,
    "pruned": FLOW | {"flow"},
    "prune": PRUNE,
    "parts": BASE | {"methods"},
    "inside": BASE | {"families", "methods", "flow", "pruned"},
    "chat": PRUNE | {"prune", "parts", "inside"},
    "attach": PRUNE | {"chat", "inside"},
    "mini": {"errors"},
    "pictures": {"errors"},
    "draw": BASE | {"families", "pictures", "select"},
    "bench": PRUNE | {"prune", "mini", "parts", "inside", "pictures", "chat"},
    "vllm": BASE | {"families", "methods", "text"},
    "__main__": {"cli"},
    "cli": {"__version__"} | PRUNE | {"prune", "attach", "mini", "bench", "draw", "pictures"},
}
FILES = [path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"]


def room(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "foveate":
            parts = node.module.split(".")[1:]
            yield from [parts[0]] if parts else [alias.name for alias in node.names]
        if isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("foveate."))
        assert not (isinstance(node, ast.ImportFrom) and node.level), "imports are absolute"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_what_it_may(path):
    used = set(imported(ast.parse(path.read_text()))) - {room(path)}
    assert used <= ALLOWED[room(path)], f"{path.name} imports {sorted(used - ALLOWED[room(path)])}"


def test_select_imports_torch_alone():
    """And numpy where steps on N numbers would spend their time on torch's calls, and Triton for a GPU."""
    more = {
        "checks.py": {"contextlib", "contextvars"},
        "engine.py": {"contextlib", "functools"},
        "residual/columns.py": {"numpy"},
        "residual/kernel.py": {"triton"},
        "residual/triton.py": {"triton", "functools", "subprocess"},
    }
    for path in (ROOT / "select").rglob("*.py"):
        names = {
            name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            for name in (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else []
            )
        }
        allowed = {"torch", "foveate", "numbers", "collections", "typing"}
        assert names <= allowed | more.get(path.relative_to(ROOT / "select").as_posix(), set())


def test_the_kernel_is_imported_where_it_is_asked_for_alone():
    command = "import sys, foveate; foveate.prune; sys.exit('foveate.select.residual.triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


def test_the_table_is_complete():
    assert {room(path) for path in FILES} <= set(ALLOWED)
