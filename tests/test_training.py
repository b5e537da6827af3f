"""The training recipe's claims: it shows no pair that is held out, and its packed forward is the stock model's."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from foveate import mini
from foveate.mini.scenes import HELD_OUT_COLOURS, HELD_OUT_LETTERS, draw, held_out

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
import mini_data
from mini_exercises import draw_prompts
from mini_forward import answer_logits
from mini_pack import pack, pick_patches

SCENES = {
    "varied": mini_data.varied_scene,
    "crowded": mini_data.crowded_scene,
    "mixed": mini_data.mixed_scene,
    "estranged": lambda index: mini_data.estranged(mini_data.crowded_scene(index), index),
}


@pytest.mark.parametrize("make", SCENES.values(), ids=SCENES)
def test_no_training_picture_shows_a_pair_held_out(make):
    assert not any(held_out(thing) for index in range(400) for thing in make(index).things)


def test_no_training_question_names_a_pair_held_out_or_what_has_no_name():
    names = [f"{colour} {shape}" for shape, colour in HELD_OUT_COLOURS]
    letters = [f"{shape} with the letter {letter}" for shape, letter in HELD_OUT_LETTERS]
    for index in range(200):
        for question, answer, _ in draw_prompts(mini_data.varied_scene(index), random.Random(index), 20):
            assert not any(name in question for name in (*names, *letters))
            assert "#" not in question + answer
            assert "-gon" not in question + answer


@torch.no_grad()
def test_the_packed_forward_is_the_stock_models():
    """Many questions behind one image, all patches: the logits that each has by itself."""
    model, processor = mini.load()
    scenes = [mini_data.plain_scene(index) for index in range(2)]
    prompts = [draw_prompts(scene, random.Random(1), 4) for scene in scenes]
    pick = pick_patches(
        np.stack([mini_data.patch_labels(scene) for scene in scenes]), 35, np.random.default_rng(0)
    )
    packed = pack(prompts, pick, processor.tokenizer)
    pixels = processor.image_processor([draw(scene) for scene in scenes], return_tensors="pt")["pixel_values"]
    image = torch.stack(list(model.model.get_image_features(pixels, return_dict=True).pooler_output))
    ours = answer_logits(model, packed, image).split(
        [
            len(processor.tokenizer(f" {answer}</s>", add_special_tokens=False)["input_ids"])
            for group in prompts
            for _, answer, _ in group
        ]
    )
    answers = iter(ours)
    for scene, group in zip(scenes, prompts, strict=True):
        for question, answer, _ in group:
            text = f"USER: <image>\n{question} ASSISTANT: {answer}</s>"
            inputs = processor(images=draw(scene), text=text, return_tensors="pt")
            own = next(answers)
            expected = model(**inputs).logits[0, -len(own) - 1 : -1]
            assert torch.allclose(own, expected, atol=1e-3)
