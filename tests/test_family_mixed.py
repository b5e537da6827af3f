"""Images and videos in one prompt, for families that take both: the oracle and controls of test_families.py."""

from dataclasses import replace
from itertools import chain

import pytest
import torch

import foveate
from conftest import features_by_row
from foveate.share import shares
from test_families import (
    NAMES,
    REPEATING,
    check_controls,
    difference,
    generated,
    masked,
    model_of,
    stock_repeats_wrongly,
)
from zoo import MIXED

# The images (i) and videos (v) of each row.
PROMPTS = {
    "an image and a video": {"rows": ("iv",)},
    "an image between videos": {"rows": ("viv",)},
    "batch of two": {"rows": ("vi", "i")},
    "batch of three with a text-only row": {"rows": ("viiv", "", "v")},
    "right padding": {"rows": ("iv", "vii"), "side": "right"},
}
LEFT = [name for name in PROMPTS if name != "right padding"]
MIXED_NAMES = [name for name in MIXED if name in NAMES]


def of_each_kind(found, kinds):
    """What is found of each picture in the order of the prompt: images first, as in `Pruned`, then videos."""
    pairs = [*zip(found, chain(*kinds), strict=True)]
    return [what for kind in "iv" for what, own in pairs if own == kind]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("name", MIXED_NAMES)
def test_mixed_logits_equal_the_masked_full_prompt(name, prompt):
    rows = PROMPTS[prompt]["rows"]
    inputs = MIXED[name].prompt(**PROMPTS[prompt])
    for options in ({"keep": 0.6}, {"keep_total": 0.5}, {"keep": 0.5, "per_frame": True}):
        pruned = foveate.prune(model_of(name), inputs, foveate.RRQR(), **options)
        assert pruned.kinds == [{"i": "image", "v": "video"}[kind] for kind in sorted("".join(rows))]
        assert pruned.rows == of_each_kind([row for row, kinds in enumerate(rows) for _ in kinds], rows)
        assert pruned.report.tokens_before == MIXED[name].tokens(rows)
        assert difference(name, inputs, pruned, *masked(name, inputs, pruned)) < 1e-4


@pytest.mark.parametrize("mode", ["greedy", "beams"])
@pytest.mark.parametrize("prompt", LEFT)
@pytest.mark.parametrize("name", MIXED_NAMES)
def test_mixed_generation_equals_the_masked_full_prompt(name, prompt, mode):
    model, inputs = model_of(name), MIXED[name].prompt(**PROMPTS[prompt])
    pruned = foveate.prune(model, inputs, foveate.Random(), keep=0.6)
    full, _ = masked(name, inputs, pruned)
    if mode in REPEATING and stock_repeats_wrongly(name):
        full = features_by_row(model, inputs, full)
    ours, logits = generated(model, pruned, mode)
    expected, expected_logits = generated(model, full, mode)
    assert ours == expected
    assert (logits - expected_logits).abs().max() < 1e-4


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("name", MIXED_NAMES)
def test_mixed_totals_are_shared_by_the_images_and_videos_of_a_row(name, prompt):
    inputs = MIXED[name].prompt(**PROMPTS[prompt])
    pruned = foveate.prune(model_of(name), inputs, foveate.RRQR(), keep_total=30)
    report = pruned.report
    for row in range(len(inputs["input_ids"])):
        before, after = (
            [count for count, own in zip(counts, pruned.rows, strict=True) if own == row]
            for counts in (report.tokens_before, report.tokens_after)
        )
        if before:
            assert after == shares(min(30, sum(before)), before, least=[1] * len(before))


@pytest.mark.parametrize("prompt", LEFT)
@pytest.mark.parametrize("name", MIXED_NAMES)
def test_control_mixed_differs(name, prompt):
    """Without masking, and with positions without gaps: at every step, in every row with pictures."""
    pictured = torch.tensor([len(kinds) > 0 for kinds in PROMPTS[prompt]["rows"]])
    check_controls(name, MIXED[name].prompt(**PROMPTS[prompt]), pictured)


def with_kept(pruned, kept):
    """The same pruned prompt, which says that it kept other tokens."""
    other = replace(pruned)
    vars(other)["kept"] = kept
    return other


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("name", MIXED_NAMES)
def test_control_mixed_looks_at_both_kinds(name, kind):
    """Other tokens kept of the images alone, or of the videos alone, fail the comparison."""
    inputs = MIXED[name].prompt(("viv",))
    pruned, other = (
        foveate.prune(model_of(name), inputs, method, keep=0.4) for method in (foveate.RRQR(), foveate.Random(1))
    )
    exchanged = [
        theirs if own == kind else mine
        for mine, theirs, own in zip(pruned.kept, other.kept, pruned.kinds, strict=True)
    ]
    full, stays = masked(name, inputs, with_kept(pruned, exchanged))
    assert difference(name, inputs, pruned, full, stays) > 0.05
