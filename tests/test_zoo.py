"""The zoo's prompts are what stock models take, and its models look at their pictures."""

from functools import cache

import pytest
import torch

from conftest import PROMPTS
from zoo import ZOO

BATCH = PROMPTS["batch of three with a text-only row"]
RAGGED = [name for name in ZOO if len(set(ZOO[name].tokens((1, 2)))) > 1]


@cache
def model_of(name):
    return ZOO[name].build()


def logits(name, inputs):
    with torch.no_grad():
        return model_of(name)(**inputs).logits


def visual(name, inputs):
    return torch.isin(inputs["input_ids"], torch.tensor(ZOO[name].placeholders))


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("name", ZOO)
def test_stock_takes_the_prompt(name, prompt):
    inputs = ZOO[name].prompt(**PROMPTS[prompt])
    assert int(visual(name, inputs).sum()) == sum(ZOO[name].tokens(PROMPTS[prompt]["images_per_row"]))
    real = logits(name, inputs)[inputs["attention_mask"].bool()]
    assert real.isfinite().all()
    assert 0.5 < real.std() < 2


@pytest.mark.parametrize("name", ZOO)
def test_stock_generates(name):
    inputs = ZOO[name].prompt(**BATCH)
    output = model_of(name).generate(**inputs, max_new_tokens=3)
    assert output.shape[1] == inputs["input_ids"].shape[1] + 3
    assert not torch.isin(output[:, -3:], torch.tensor(ZOO[name].placeholders)).any()


@pytest.mark.parametrize("name", ZOO)
def test_visual_tokens_matter(name):
    inputs = ZOO[name].prompt((2,))
    blind = {**inputs, "attention_mask": inputs["attention_mask"] * ~visual(name, inputs)}
    difference = (logits(name, inputs) - logits(name, blind))[0, -1].abs().max()
    assert difference > 0.3


@pytest.mark.parametrize("name", ZOO)
def test_rows_see_their_own_pictures(name):
    """With other pixels, rows with pictures change, and the text-only row stays what it is."""
    inputs = ZOO[name].prompt(**BATCH)
    pixels = next(key for key in inputs if key.startswith("pixel_values"))
    other = {**inputs, pixels: -inputs[pixels]}  # also keeps zeros, which mark padding
    difference = (logits(name, inputs) - logits(name, other))[:, -1].abs().amax(-1)
    assert difference[[0, 2]].min() > 0.05
    assert difference[1] < 1e-5


@pytest.mark.parametrize("name", ZOO)
def test_a_text_only_row_is_as_if_alone(name):
    inputs = ZOO[name].prompt(**BATCH)
    real = inputs["attention_mask"][1].bool()
    text = {
        key: inputs[key][1:2, real] for key in ("input_ids", "attention_mask", "token_type_ids") if key in inputs
    }
    assert torch.allclose(logits(name, inputs)[1, real], logits(name, text)[0], atol=1e-4)


def test_pictures_of_one_prompt_differ_in_size_where_the_family_allows():
    stacked = {"llava", "llava_onevision_video", "llava_next_video", "gemma3", "paligemma"}
    assert set(ZOO) - set(RAGGED) == stacked
    assert ZOO["llava_onevision"].tokens((1, 2)) == [25, 10, 10]  # one image: shrunk tiles; several: none


def test_prompts_are_drawn_from_their_seed():
    first, again, other = (ZOO["gemma4"].prompt(seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["pixel_values"], other["pixel_values"])
