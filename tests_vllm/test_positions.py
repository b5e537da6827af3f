"""Positions, prompts and batches: plain functions, and what engines make of them."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import pad
from transformers.video_utils import VideoMetadata

import foveate
from checkpoints import IMAGE, VIDEO
from conftest import QUESTIONS, opened, picture
from foveate.vllm.batches import batches
from foveate.vllm.positions import Offsets, split_offsets, with_offsets


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_offsets_survive_the_dtype_of_the_rows(dtype):
    """Whole numbers above 256 do not: hence the bytes."""
    offsets = torch.tensor([[0, 255, 256], [257, 1023, 65535]])
    rows, found = split_offsets(with_offsets(torch.ones(2, 5, dtype=dtype), offsets), 5)
    assert found.tolist() == offsets.tolist()
    assert rows.tolist() == torch.ones(2, 5).tolist()
    assert torch.tensor([257], dtype=torch.bfloat16).long().item() != 257


def test_offsets_are_added_once_where_they_belong():
    step = Offsets(8)
    pruned = with_offsets(torch.zeros(2, 5), torch.tensor([[0, 1, 2], [0, 3, 300]]))
    where = torch.tensor([False, True, True, False, True])
    step.write([pruned, torch.zeros(1, 5)], where, 5)
    positions = torch.arange(5).expand(3, -1)
    moved = step.moved(positions)
    assert (moved - positions).tolist() == [[0, 0, 0, 0, 0], [0, 1, 3, 0, 0], [0, 2, 300, 0, 0]]
    assert step.moved(positions).tolist() == positions.tolist()
    assert step.moved(positions).data_ptr() == moved.data_ptr()  # CUDA graphs read it in place


def test_a_step_without_pruned_images_is_handed_on():
    step = Offsets(8)
    where = torch.tensor([True, True, False])
    step.write([with_offsets(torch.zeros(2, 5), torch.ones(2, 3, dtype=torch.long))], where, 5)
    rows = [torch.ones(1, 5), torch.ones(1, 5)]
    assert all(mine is given for mine, given in zip(step.write(rows, where, 5), rows, strict=True))
    assert not step.moved(torch.zeros(3, 3, dtype=torch.long)).any()  # nor is anything left of the step before


def test_batches():
    assert batches([36] * 5, 80) == [(0, 2), (2, 4), (4, 5)]
    assert batches([100, 5, 5], 80) == [(0, 1), (1, 3)]
    assert batches([], 80) == []


@pytest.mark.parametrize(("name", "new"), [("llava", 8), ("qwen2_vl", 1)])
def test_a_prompt_that_ends_with_an_image_keeps_its_last_token(folders, name, new):
    """Its query writes the first token of the answer.

    Of Qwen's answer only that: transformers then counts on from each axis of the image's last token, vLLM from the
    largest.
    """
    with opened(folders, name, {"method": "norm", "keep": 3}) as bench:
        mark = bench.processor.tokenizer.decode([IMAGE])
        bench.text = lambda pictures, question: f"{question} {mark}"
        wanted = [bench.expected([picture(i)], QUESTIONS[i % 3], foveate.NormTopK(), 3, new=new) for i in range(6)]
        asked = [bench.request([picture(i)], QUESTIONS[i % 3]) for i in range(6)]
        assert bench.answers(asked, new=new) == wanted


def test_positions_go_on_behind_max_model_len(folders):
    """Dropped tokens count among them: the rotary table has rows for these, in the prompt and in the answer."""
    limit, method = 96, {"method": "rrqr", "keep": 4}
    overrides = {"foveate": method, "text_config": {"max_position_embeddings": limit}}
    with opened(folders, "llava", {}, hf_overrides=overrides, max_model_len=limit) as bench:
        for images in (1, 3):
            pictures = [picture(i) for i in range(images)]
            asked = bench.request(pictures, QUESTIONS[0])
            bench.answers([asked], new=1)
            length = len(bench.outputs[0].prompt_token_ids)
            new = limit - length
            wanted = bench.expected(pictures, QUESTIONS[0], foveate.RRQR(), 4, new=new)
            assert length + 32 * images + new > limit
            assert bench.answers([asked], new=new) == [wanted]
        assert length + 32 * images > limit + images  # the prompt's own positions do, too
        fewest = bench.request(pictures, QUESTIONS[0], foveate={"keep": 3})
        with pytest.raises(ValueError, match="99 tokens of this prompt's images would be dropped: allowed are 96"):
            bench.answers([fewest])
        assert bench.answers([asked], new=new) == [wanted]


@pytest.mark.parametrize(("name", "most"), [("qwen3_vl", 3), ("qwen2_5_vl", 10)])
def test_an_image_takes_its_side_in_positions_however_few_tokens_are_kept(folders, name, most):
    """Of 36 to 1 tokens, 35 positions more than tokens: as far as the rotary table goes, then a refusal."""
    limit, method = 128, foveate.NormTopK()
    options = {
        "hf_overrides": {
            "foveate": {"method": "norm", "keep": 1},
            "text_config": {"max_position_embeddings": limit},
        },
        "max_model_len": limit,
        "limit_mm_per_prompt": {"image": most + 1, "video": 0},
    }
    pixels = np.random.default_rng(0).integers(0, 256, (most + 1, 8, 36 * 8, 3), dtype=np.uint8)
    thin = [Image.fromarray(one) for one in pixels]
    with opened(folders, name, {}, **options) as bench:
        wanted = bench.expected(thin[:most], QUESTIONS[2], method, 1, new=3)
        assert bench.answers([bench.request(thin[:most], QUESTIONS[2])], new=3) == [wanted]
        more = bench.request(thin, QUESTIONS[2])
        allowed = {"qwen3_vl": limit, "qwen2_5_vl": 3 * limit}[name]
        says = f"have {35 * (most + 1)} more positions than tokens: allowed are {allowed}, "
        with pytest.raises(ValueError, match=says):
            bench.answers([more])
        assert bench.answers([bench.request(thin[:most], QUESTIONS[2])], new=3) == [wanted]
        whole = bench.request(thin[:1], QUESTIONS[2], foveate=None)
        assert bench.answers([whole], new=3) == [bench.expected(thin[:1], QUESTIONS[2], new=3)]


FRAMES = np.random.default_rng(5).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
FACTS = {"fps": 2.0, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3], "duration": 2.0}


def beside_video(bench, **options):
    video = (FRAMES, {**FACTS, "do_sample_frames": False, "video_backend": "opencv"})
    request = bench.request([picture(0)], QUESTIONS[0], **options)
    text = "<|vision_start|><|video_pad|><|vision_end|>" + request["prompt"]
    return {**request, "prompt": text, "multi_modal_data": {"image": [picture(0)], "video": [video]}}


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_a_video_beside_an_image_stays_whole(folders, name):
    """All of the image kept, with offsets, answers as the image without; with some dropped, otherwise."""
    limits = {"image": 1, "video": 1}
    with opened(folders, name, {}, limit_mm_per_prompt=limits) as bench:
        every = [None, {"method": "rrqr", "keep": 1.0}, {"method": "rrqr", "keep": 6}]
        stock, whole, pruned = bench.answers([beside_video(bench, foveate=options) for options in every])
        assert whole == stock
        assert pruned != stock
        if name == "qwen2_5_vl":  # transformers and vLLM answer differently to videos of Qwen3-VL, nothing pruned
            assert pruned == expected_beside_video(bench)


def expected_beside_video(bench):
    """Stock transformers, the image's dropped tokens masked out; no cache, so that all positions are told."""
    text = beside_video(bench)["prompt"]
    video = {"videos": [FRAMES], "video_metadata": [VideoMetadata(**FACTS)], "do_sample_frames": False}
    inputs = dict(bench.processor(text=[text], images=[picture(0)], **video, return_tensors="pt"))
    pruned = foveate.prune(bench.model, inputs, foveate.RRQR(), keep=6)
    ids = inputs["input_ids"]
    places = (ids[0] == IMAGE).nonzero().flatten()
    mask = torch.ones_like(ids)
    mask[0, places] = 0
    mask[0, places[pruned.kept[pruned.kinds.index("image")]]] = 1
    grids = {name: inputs[name] for name in ("mm_token_type_ids", "image_grid_thw", "video_grid_thw")}
    seconds = {name: inputs[name] for name in ("second_per_grid_ts",) if name in inputs}
    positions, _ = bench.model.model.get_rope_index(input_ids=ids, **grids, **seconds)
    found = []
    for _ in range(8):
        extra = ids.shape[1] - positions.shape[2]
        later = positions.max() + 1 + torch.arange(extra)
        told = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": torch.cat([positions, later.expand(3, 1, -1)], dim=2),
            "mm_token_type_ids": pad(inputs["mm_token_type_ids"], (0, extra)),
        }
        with torch.no_grad():
            logits = bench.model(**{**inputs, **told}, use_cache=False).logits[0, -1]
        logits[[IMAGE, VIDEO]] = -torch.inf
        found.append(int(logits.argmax()))
        ids, mask = pad(ids, (0, 1), value=found[-1]), pad(mask, (0, 1), value=1)
    return found
