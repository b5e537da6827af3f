"""LLaVA with its CLS row, LLaVA-NeXT and LLaVA-OneVision: rows that are no part of the picture are always kept."""

import pytest
from PIL import Image

import foveate
from conftest import QUESTIONS, opened, picture

SHAPES = ((48, 32), (20, 60), (64, 20), (24, 24), (11, 40))  # (width, height): other tilings each
METHODS = {"rrqr": foveate.RRQR(), "spare": foveate.SPARE(relevance="llm"), "random": foveate.Random()}


def shaped(index):
    return picture(index).resize(SHAPES[index % len(SHAPES)], Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", ["llava_full", "llava_next", "llava_onevision"])
def test_equal_to_transformers(folders, name):
    with opened(folders, name, {"method": "rrqr", "keep": 0.6}) as bench:
        asked, wanted, compact = [], [], []
        for index in range(5):
            question = QUESTIONS[index % 3]
            for method, keep in (("rrqr", 0.5), ("spare", 12), ("random", 0.4)):
                options = {"method": method, "keep": keep}
                asked.append(bench.request([shaped(index)], question, foveate=options))
                given = ([shaped(index)], question, METHODS[method], keep)
                wanted.append(bench.expected(*given))
                compact.append(bench.expected(*given, positions="compact"))
        assert sum(one != other for one, other in zip(wanted, compact, strict=True)) >= 4  # the control
        assert [bench.answers([request])[0] for request in asked] == wanted
        assert bench.answers(asked) == wanted


def test_a_budget_below_the_rows_that_are_always_kept(folders):
    with opened(folders, "llava_next", {}) as bench:
        few = bench.request([shaped(1)], QUESTIONS[0], foveate={"method": "rrqr", "keep": 1})
        with pytest.raises(ValueError, match="always kept"):
            bench.answers([few])
