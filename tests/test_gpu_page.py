"""docs/gpu/performance.md is what its command writes from the stores beside it."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "gpu" / "performance.md"


@pytest.fixture
def gpu_page(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("gpu_page")


def test_the_tables_are_what_the_command_writes(gpu_page):
    by_hand, tables = PAGE.read_text(encoding="utf-8").split(gpu_page.BEGIN)
    assert tables == gpu_page.written()
    assert len(by_hand.split("\n\n- ")[1].strip().splitlines()) <= 10


def test_control_another_time_is_another_page(gpu_page, tmp_path):
    path = tmp_path / "b16.jsonl"
    path.write_text((ROOT / "docs/gpu/data/b16.jsonl").read_text().replace('"prefill": 0.2', '"prefill": 0.9'))
    assert gpu_page.section(gpu_page.summarised(path)) not in PAGE.read_text(encoding="utf-8")


def test_an_arm_with_fewer_rounds_than_stock_is_left_out_and_named(gpu_page):
    summary = gpu_page.summarised(ROOT / "docs/gpu/data/b8.jsonl")
    assert [row["label"] for row in summary["cases"][0]["rows"]][-1] == "SPARE 64"
    assert summary["context"]["left_out"] == ["ResPrune 64 (1 round)"]


def test_all_stores_are_of_one_machine_and_one_commit(gpu_page):
    firsts = [json.loads(path.open().readline()) for path in (ROOT / "docs/gpu/data").glob("*.jsonl")]
    assert len(firsts) == len(gpu_page.STORES) == 5
    assert {first["code"] for first in firsts} == {"3ab46e69ef1c"}
