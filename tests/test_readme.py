"""The README's numbers are those of the pages that commands write."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def section(title):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def test_speed_is_what_the_page_says():
    page, told = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8"), section("How much faster")
    rows = [line for line in told.splitlines() if line.startswith("| ")]
    assert len(rows) >= 8
    assert set(rows) <= set(page.splitlines())
    shares = dict(re.findall(r"^\| (SPARE|ResPrune) 64 \| (\S+) % \|", page, flags=re.MULTILINE))
    for number, name in re.findall(r"(\S+) % \((\w+)\)", told):
        assert float(number) == round(float(shares[name]), 1)
    for fact in re.findall(r"commit \w{12}|transformers [\d.]+|torch [\d.]+", told):
        assert fact in page


def test_the_gain_of_serving_is_what_the_page_says():
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith("| SPARE 64 | 4 |")]
    told = re.findall(r"([\d.]+x) (\([\d.]+–[\d.]+\))", section("With vLLM"))
    found = re.findall(r"([\d.]+x) faster (\([\d.]+–[\d.]+\))", row)
    assert told == found[:2]
    (size,) = re.findall(r"([\d.]+ B)\s+random weights", section("With vLLM"))
    assert f"Its {size} weights are random" in page
