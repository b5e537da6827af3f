"""Budgets over tiles, frames and several images; layouts; a model type that no family knows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import foveate
from foveate.families import FAMILIES, family_of
from foveate.share import shares
from test_families import NAMES, difference, masked, model_of, visual
from zoo import ZOO

VIDEOS = [name for name in NAMES if name.endswith("video")]
NEWLINES = ["llava_next", "llava_next_video_image", "llava_onevision", "llava_onevision_video"]


def prune(name, inputs, **options):
    return foveate.prune(model_of(name), inputs, options.pop("method", foveate.RRQR()), **options)


@given(st.data(), st.lists(st.integers(1, 50), min_size=1, max_size=8))
def test_shares_are_whole_proportional_and_within_bounds(data, sizes):
    least = [data.draw(st.integers(0, size)) for size in sizes] if data.draw(st.booleans()) else None
    count = data.draw(st.integers(sum(least or []), sum(sizes)))
    found = shares(count, sizes, least)
    assert sum(found) == count
    assert all(
        few <= part <= size for few, part, size in zip(least or [0] * len(sizes), found, sizes, strict=True)
    )
    if least is None:
        assert all(abs(part - count * size / sum(sizes)) < 1 for part, size in zip(found, sizes, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_count_is_per_image_with_all_its_tiles(name):
    pruned = prune(name, ZOO[name].prompt((2, 1)), keep=7)
    assert pruned.report.tokens_after == [min(7, n) for n in ZOO[name].tokens((2, 1))]
    assert pruned.rows == [0, 0, 1]


@pytest.mark.parametrize("name", NAMES)
def test_a_total_is_shared_in_proportion(name):
    inputs = ZOO[name].prompt((2, 0, 1))
    total = sum(ZOO[name].tokens((2,))) // 2
    pruned = prune(name, inputs, keep_total=total)
    before, after = pruned.report.tokens_before, pruned.report.tokens_after
    assert after[:2] == shares(total, before[:2], least=[1, 1])
    assert after[2] == min(total, before[2])
    assert difference(name, inputs, pruned, *masked(name, inputs, pruned)) < 1e-4
    half = prune(name, inputs, keep_total=0.5)
    assert sum(half.report.tokens_after[:2]) == int(sum(before[:2]) * 0.5 + 0.5)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, "one of the two"),
        ({"keep": 3, "keep_total": 3}, "one of the two"),
        ({"keep_total": 1}, r"keep_total=1: \[1, 1\] tokens of the prompt's 2 images.*allowed are 2 or more"),
        ({"keep_total": 1.5}, "keep_total=1.5"),
        ({"keep": 0}, "keep=0"),
    ],
)
def test_bad_budgets(options, error):
    with pytest.raises(foveate.InvalidBudget, match=error):
        prune("llava", ZOO["llava"].prompt((2,)), **options)


@pytest.mark.parametrize("name", NEWLINES)
def test_newlines_are_kept_and_count(name):
    inputs = ZOO[name].prompt((1,))
    model = model_of(name)
    pruned = prune(name, inputs, keep=0.7)
    newline = model.model.image_newline
    features = pruned["mm_encoder_outputs"]
    rows = next(iter(features.values())).pooler_output[0]
    everything = prune(name, inputs, keep=1.0)["mm_encoder_outputs"]
    whole = next(iter(everything.values())).pooler_output[0]
    wanted = int((whole == newline).all(-1).sum())
    assert wanted > 0
    assert int((rows == newline).all(-1).sum()) == wanted
    assert len(rows) == pruned.report.tokens_after[0]
    assert prune(name, inputs, keep=wanted).report.tokens_after == [wanted]


@pytest.mark.parametrize("name", [name for name in NEWLINES if not name.endswith("onevision_video")])
def test_a_budget_below_what_is_always_kept_is_refused(name):
    with pytest.raises(
        foveate.InvalidBudget, match=r"keep=1: \d+ of the \d+ tokens of the row's image 1 are always kept"
    ):
        prune(name, ZOO[name].prompt((1,)), keep=1)


def test_a_total_leaves_room_for_what_is_always_kept():
    inputs = ZOO["llava_next"].prompt((3,))
    locked = [int(flags.sum()) for flags in prune("llava_next", inputs, keep=1.0).locked]
    assert len(set(locked)) > 1
    pruned = prune("llava_next", inputs, keep_total=sum(locked))
    assert pruned.report.tokens_after == locked
    message = rf"keep_total={sum(locked) - 1}: .*allowed are {sum(locked)} or more"
    with pytest.raises(foveate.InvalidBudget, match=message):
        prune("llava_next", inputs, keep_total=sum(locked) - 1)


@pytest.mark.parametrize("name", NEWLINES)
def test_a_newline_that_ends_the_prompt_is_counted_once(name):
    inputs = ZOO[name].prompt((1,))
    end = int(visual(name, inputs).nonzero()[-1, 1]) + 1
    width = inputs["input_ids"].shape[1]
    inputs = {
        key: value[:, :end] if value.dim() == 2 and value.shape[1] == width else value
        for key, value in inputs.items()
    }
    locked = int(prune(name, inputs, keep=1.0).locked[0].sum())
    pruned = prune(name, inputs, keep=locked)
    assert difference(name, inputs, pruned, *masked(name, inputs, pruned)) < 1e-4


@pytest.mark.parametrize("name", VIDEOS)
def test_frames_can_be_ranked_by_themselves(name):
    inputs = ZOO[name].prompt((1,))
    pruned = prune(name, inputs, keep=0.5, per_frame=True)
    assert pruned.kinds == ["video"]
    grids, kept = pruned.grids[0], pruned.kept_in_grids(0)
    free = sum(map(len, kept))
    assert len(grids) > 1
    assert [len(part) for part in kept] == shares(free, [h * w for h, w in grids])
    assert difference(name, inputs, pruned, *masked(name, inputs, pruned)) < 1e-4
    together = prune(name, inputs, keep=0.5)
    assert together.report.tokens_after == pruned.report.tokens_after


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("keep", [1, 2, 3, 5])
def test_a_prompt_that_ends_with_a_video_keeps_its_last_token_whatever_frames_get(name, keep):
    model, inputs = model_of(name), ZOO[name].prompt((1,))
    ids, token = inputs["input_ids"], model.config.video_token_id
    end = int((ids[0] == token).nonzero()[-1]) + 1
    cut = {key: value[:, :end] if value.shape == ids.shape else value for key, value in inputs.items()}
    pruned = prune(name, cut, keep=keep, per_frame=True)
    assert int(pruned.kept[0][-1]) == pruned.report.tokens_before[0] - 1
    assert int(pruned["input_ids"][0, -1]) == token
    assert pruned.report.tokens_after == [keep]


@pytest.mark.parametrize("name", NAMES)
def test_grids_hold_every_token_that_is_not_locked(name):
    inputs = ZOO[name].prompt((1, 2))
    pruned = prune(name, inputs, keep=1.0)
    for image, grids in enumerate(pruned.grids):
        kept = pruned.kept_in_grids(image)
        assert [len(part) for part in kept] == [h * w for h, w in grids]
        locked = pruned.report.tokens_before[image] - sum(map(len, kept))
        assert (locked > 0) == (name in NEWLINES)
    for method in (foveate.UniformGrid(), foveate.AveragePool()):
        pruned = prune(name, inputs, method=method, keep=0.5)
        assert pruned.report.tokens_after == [int(n / 2 + 0.5) for n in pruned.report.tokens_before]


@pytest.mark.parametrize("name", NAMES)
def test_views_show_every_token_kept_that_is_not_locked(name):
    inputs = ZOO[name].prompt((1, 2))
    pruned = prune(name, inputs, keep=0.5)
    for image, kind in enumerate(pruned.kinds):
        views = pruned.views(image, (4, 3))
        assert sum(len(view.kept) for view in views) == sum(map(len, pruned.kept_in_grids(image)))
        assert all(0 <= int(view.kept.max()) < view.grid[0] * view.grid[1] for view in views if len(view.kept))
        if kind == "video":
            assert [view.name for view in views] == [f"frame {n + 1}" for n in range(len(pruned.grids[image]))]
        else:
            assert [view.name for view in views] in (["image"], ["image", "tiles"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_inputs_of_any_float_are_read(dtype):
    """A processor's output that is moved to a dtype takes all its floats there, seconds per frame as well."""
    name, inputs = "qwen2_5_vl_video", ZOO["qwen2_5_vl_video"].prompt((1, 2))
    moved = inputs | {"second_per_grid_ts": inputs["second_per_grid_ts"].to(dtype)}
    pruned = prune(name, moved, keep=4)
    whole = family_of(model_of(name)).positions(model_of(name), moved)
    assert torch.equal(prune(name, moved, keep=1.0)["position_ids"][1:], whole)
    assert torch.equal(pruned["position_ids"][1:, :, -1], whole[:, :, -1])


def test_per_frame_is_true_or_false():
    with pytest.raises(foveate.InvalidOption, match="per_frame='yes'"):
        prune("llava", ZOO["llava"].prompt(), keep=3, per_frame="yes")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("internvl", "idefics3", "smolvlm")])
def test_an_unknown_model_type_may_run_as_generic(name, monkeypatch):
    inputs = ZOO[name].prompt((1, 2))
    kind = model_of(name).config.model_type
    others = {known: family for known, family in FAMILIES.items() if known != kind}
    monkeypatch.setattr("foveate.families.FAMILIES", others)
    with pytest.raises(foveate.UnsupportedModel, match=f"{kind!r}.*supported are.*family='generic'"):
        prune(name, inputs, keep=0.6)
    pruned = prune(name, inputs, keep=0.6, family="generic")
    assert difference(name, inputs, pruned, *masked(name, inputs, pruned)) < 1e-4
    with pytest.raises(foveate.MissingSignal, match="CLS"):
        prune(name, inputs, method=foveate.ResPrune(alpha=0, seed="cls"), keep=0.6, family="generic")


def test_generic_is_the_only_family_to_ask_for():
    with pytest.raises(foveate.InvalidOption, match="family='llava'"):
        prune("llava", ZOO["llava"].prompt(), keep=3, family="llava")


def test_a_model_that_takes_no_encoded_images_is_refused():
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    with pytest.raises(foveate.UnsupportedModel, match="mm_encoder_outputs"):
        foveate.prune(tiny, ZOO["llava"].prompt(), foveate.RRQR(), keep=3, family="generic")


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("llava_next", "image_sizes"),
        ("qwen2_vl", "mm_token_type_ids"),
        ("qwen2_vl", "image_grid_thw"),
        ("gemma4", "image_position_ids"),
    ],
)
def test_what_the_processor_returned_must_be_whole(name, missing):
    inputs = ZOO[name].prompt((1,))
    del inputs[missing]
    with pytest.raises(foveate.InvalidInputs, match=missing):
        prune(name, inputs, keep=3)


def test_a_video_is_refused_by_a_family_without():
    inputs = ZOO["llava"].prompt()
    inputs["pixel_values_videos"] = inputs.pop("pixel_values")
    with pytest.raises(foveate.InvalidInputs, match=r"pixel_values_videos given to LLaVA-1\.5"):
        prune("llava", inputs, keep=3)
