"""The decisive test: removing a token equals masking it out of the full prompt, at the same positions.

The oracle is stock transformers on the unpruned prompt, with ``attention_mask = 0`` at the dropped
placeholders. The controls at the end must differ, or the oracle would prove nothing.
"""

import pytest
import torch

import foveate
from conftest import IMAGE_TOKEN, PROMPTS, REPEATS_RIGHTLY, features_by_row, tiny_llava, tiny_prompt

LEFT = [name for name in PROMPTS if name != "right padding"]
METHODS = [foveate.RRQR(), foveate.Random(3), foveate.ResPrune(alpha=0), foveate.SPARE(relevance=None)]
MODES = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "beams, several returned": {"num_beams": 4, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "top_k": 20},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
}


def masked(inputs, pruned, positions="original"):
    """The full prompt with the dropped placeholders masked, and the columns that stay."""
    mask = inputs["attention_mask"].clone()
    placeholders = (inputs["input_ids"] == IMAGE_TOKEN).nonzero()
    offset = 0
    for kept in pruned.kept:
        dropped = torch.ones(36, dtype=torch.bool)
        dropped[kept] = False
        for row, column in placeholders[offset : offset + 36][dropped].tolist():
            mask[row, column] = 0
        offset += 36
    counted = inputs["attention_mask"] if positions == "original" else mask
    position_ids = (counted.cumsum(-1) - 1).clamp(min=0)
    return {**inputs, "attention_mask": mask, "position_ids": position_ids}, mask.bool()


def logits_at_kept(model, inputs, pruned, positions="original"):
    full, stays = masked(inputs, pruned, positions)
    with torch.no_grad():
        expected = model(**full).logits[stays]
        ours = model(**pruned).logits[pruned["attention_mask"].bool()]
    return ours, expected


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("keep", [1, 9, 0.5, 36, 99])
def test_logits_equal_the_masked_full_prompt(tiny, prompt, method, keep):
    inputs = tiny_prompt(**PROMPTS[prompt])
    pruned = foveate.prune(tiny, inputs, method, keep=keep)
    ours, expected = logits_at_kept(tiny, inputs, pruned)
    assert torch.allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_compact_positions_equal_the_masked_full_prompt_with_compact_positions(tiny, prompt):
    inputs = tiny_prompt(**PROMPTS[prompt])
    pruned = foveate.prune(tiny, inputs, foveate.RRQR(), keep=9, positions="compact")
    ours, expected = logits_at_kept(tiny, inputs, pruned, "compact")
    assert torch.allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prompt", LEFT)
def test_generation_equals_the_masked_full_prompt(tiny, prompt, mode):
    inputs = tiny_prompt(**PROMPTS[prompt])
    options = {name: value for name, value in MODES[mode].items() if name != "use_cache"}  # the prompt carries it
    pruned = foveate.prune(tiny, inputs, foveate.RRQR(), keep=7, use_cache=MODES[mode].get("use_cache", True))
    full, _ = masked(inputs, pruned)
    if "beams" in mode and not REPEATS_RIGHTLY:
        full = features_by_row(tiny, inputs, full)
    torch.manual_seed(1)
    expected = tiny.generate(**full, max_new_tokens=12, **MODES[mode])[:, inputs["input_ids"].shape[1] :]
    for _ in range(2):  # a pruned prompt can be used again
        torch.manual_seed(1)
        ours = tiny.generate(**pruned, max_new_tokens=12, **options)[:, pruned["input_ids"].shape[1] :]
        assert ours.tolist() == expected.tolist()


def test_holes_in_the_mask_of_the_text_stay_holes(tiny):
    inputs = tiny_prompt((1, 2))
    inputs["attention_mask"][:, -3] = 0
    pruned = foveate.prune(tiny, inputs, foveate.RRQR(), keep=9)
    ours, expected = logits_at_kept(tiny, inputs, pruned)
    assert torch.allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize("counts", [(3, 20), (1, 36), (30, 2)])
def test_images_may_keep_different_numbers(tiny, counts):
    """Ragged counts within a row and over rows: the shrink step alone, with hand-made choices."""
    from foveate.budget import Budget
    from foveate.families import family_of
    from foveate.flow.choose import Chosen
    from foveate.flow.encode import encode
    from foveate.flow.images import images_of
    from foveate.flow.plan import Plan
    from foveate.flow.prompt import Prompt
    from foveate.flow.shrink import shrink
    from foveate.settings import Settings

    inputs, family = tiny_prompt((2, 1)), family_of(tiny)
    prompt = Prompt.read(tiny, family, inputs)
    with torch.no_grad():
        encoded = encode(tiny, family, prompt, frozenset())
    images = images_of(tiny, family, prompt, encoded.counts, encoded.kinds)
    kept = [torch.arange(0, n) for n in (*counts, 5)]
    order = torch.cat([image.start + indices for image, indices in zip(images, kept, strict=True)])
    plan = Plan(prompt, images, [*counts, 5], Settings(Budget(1.0)))
    shrunk = shrink(tiny, family, Chosen(plan, order), encoded.features[order], [])
    full, _ = masked(inputs, type("Choice", (), {"kept": kept}))
    full = full if REPEATS_RIGHTLY else features_by_row(tiny, inputs, full)
    expected = tiny.generate(**full, max_new_tokens=8, num_beams=3)[:, inputs["input_ids"].shape[1] :]
    ours = tiny.generate(**shrunk, max_new_tokens=8, num_beams=3)[:, shrunk["input_ids"].shape[1] :]
    assert ours.tolist() == expected.tolist()


@pytest.mark.parametrize("use_cache", [True, False])
def test_forward_without_cache_or_mask_is_not_taken_for_packed_sequences(tiny, use_cache):
    inputs = tiny_prompt((1,))
    del inputs["attention_mask"]
    pruned = foveate.prune(tiny, inputs, foveate.RRQR(), keep=6, use_cache=use_cache)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    full, stays = masked(inputs, pruned)
    expected = tiny(**full).logits[stays]
    ours = tiny(**pruned).logits[pruned["attention_mask"].bool()]
    assert torch.allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, 0.1), (torch.float16, 0.01)])
def test_half_precision(dtype, share):
    model = tiny_llava().to(dtype)
    inputs = tiny_prompt((1, 2))
    pruned = foveate.prune(model, inputs, foveate.RRQR(), keep=9)
    ours, expected = logits_at_kept(model, inputs, pruned)
    assert ours.dtype == dtype
    assert (ours - expected).abs().max() < share * expected.float().std()
    assert model.generate(**pruned, max_new_tokens=3).shape == (2, pruned["input_ids"].shape[1] + 3)


def test_labels_give_the_loss_of_the_kept_text(tiny):
    inputs = tiny_prompt((1, 2), side="right")
    labels = inputs["input_ids"].clone()
    labels[(labels == IMAGE_TOKEN) | (inputs["attention_mask"] == 0)] = -100
    pruned = foveate.prune(tiny, {**inputs, "labels": labels}, foveate.RRQR(), keep=9)
    full, stays = masked(inputs, pruned)
    logits = tiny(**full).logits
    rows = [
        torch.nn.functional.cross_entropy(row[s][:-1], t[s][1:], reduction="sum")
        for row, t, s in zip(logits, labels, stays, strict=True)
    ]
    count = sum(int((t[s][1:] != -100).sum()) for t, s in zip(labels, stays, strict=True))
    assert torch.allclose(tiny(**pruned).loss, sum(rows) / count, atol=1e-4)


@pytest.mark.parametrize("method", [foveate.RRQR(), foveate.UniformGrid()], ids=repr)
def test_an_image_at_the_very_end_keeps_its_last_token(tiny, method):
    inputs = tiny_prompt((1,), text=(7, 0))
    assert inputs["input_ids"][0, -1] == IMAGE_TOKEN
    pruned = foveate.prune(tiny, inputs, method, keep=5)
    assert len(pruned.kept[0]) == 5
    assert 35 in pruned.kept[0]
    full, _ = masked(inputs, pruned)
    expected = tiny.generate(**full, max_new_tokens=8)[:, inputs["input_ids"].shape[1] :]
    assert (
        tiny.generate(**pruned, max_new_tokens=8)[:, pruned["input_ids"].shape[1] :].tolist() == expected.tolist()
    )


def test_a_handed_on_cls_row_is_locked():
    model = tiny_llava(vision_feature_select_strategy="full")
    inputs = tiny_prompt((1,), tokens=37)
    pruned = foveate.prune(model, inputs, foveate.ResPrune(alpha=0), keep=6)
    assert pruned.kept[0][0] == 0
    assert len(pruned.kept[0]) == 6
    assert pruned.grids == [((6, 6),)]
    with pytest.raises(foveate.InvalidBudget, match="always kept"):
        foveate.prune(model, tiny_prompt((1,), tokens=37, text=(7, 0)), foveate.RRQR(), keep=1)


# Controls: each must fail the comparison that the tests above pass.


def test_control_contiguous_positions_differ(tiny):
    inputs = tiny_prompt((1, 2))
    pruned = foveate.prune(tiny, inputs, foveate.RRQR(), keep=9, positions="compact")
    ours, expected = logits_at_kept(tiny, inputs, pruned, "original")
    assert (ours - expected).abs().max() > 0.1


def test_control_not_masking_differs(tiny):
    inputs = tiny_prompt((1, 2))
    pruned = foveate.prune(tiny, inputs, foveate.RRQR(), keep=9)
    _, stays = masked(inputs, pruned)
    unmasked = tiny(**inputs, position_ids=(inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)).logits[stays]
    ours = tiny(**pruned).logits[pruned["attention_mask"].bool()]
    assert (ours - unmasked).abs().max() > 0.1


def test_control_other_tokens_differ(tiny):
    inputs = tiny_prompt((1, 2))
    pruned = foveate.prune(tiny, inputs, foveate.RRQR(), keep=9)
    other = foveate.prune(tiny, inputs, foveate.Random(0), keep=9)
    full, stays = masked(inputs, other)
    ours = tiny(**pruned).logits[pruned["attention_mask"].bool()]
    assert (ours - tiny(**full).logits[stays]).abs().max() > 0.1


def test_control_without_the_guard_column_no_cache_is_wrong(tiny):
    """Why shrink pads one masked column: without it, transformers takes gaps for packed sequences."""
    inputs = tiny_prompt((1,))
    pruned = foveate.prune(tiny, inputs, foveate.RRQR(), keep=7, use_cache=False)
    length = pruned["input_ids"].shape[1]
    bare = {
        name: value[:, 1:] if isinstance(value, torch.Tensor) and value.shape[1:2] == (length,) else value
        for name, value in pruned.items()
    }
    full, _ = masked(inputs, pruned)
    options = {"max_new_tokens": 12}
    expected = tiny.generate(**full, **options, use_cache=False)[:, inputs["input_ids"].shape[1] :].tolist()
    assert tiny.generate(**pruned, **options)[:, length:].tolist() == expected
    assert tiny.generate(**bare, **options)[:, length - 1 :].tolist() != expected
