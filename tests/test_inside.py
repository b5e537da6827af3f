"""Dropping inside the language model equals masking from that layer on; scores equal those of eager attention.

The oracle is the stock model on the full prompt, whose layers are given, from the drop on, a mask without the
tokens dropped. Nothing is shortened there.
"""

from contextlib import contextmanager
from functools import cache

import pytest
import torch

import foveate
from conftest import PROMPTS
from test_families import NAMES, visual
from zoo import ZOO, animal

DEPTH = 5
AHEAD = ("gemma3", "gemma4", "paligemma")
INSIDE = [name for name in NAMES if name not in AHEAD]
FEW = ["llava", "qwen2_5_vl", "qwen3_vl", "llava_next"]
METHODS = {
    "fastv": foveate.FastV(layer=1),
    "fastv later": foveate.FastV(layer=3),
    "pyramiddrop": foveate.PyramidDrop(layers=(1, 2, 4)),
    "sparsevlm": foveate.SparseVLM(layers=(0, 1, 3), recycle_dropped=False),
}


@cache
def deep(name, attention=None):
    before = dict(animal.LANGUAGE)
    animal.LANGUAGE["num_hidden_layers"] = DEPTH
    try:
        model = ZOO[name].build()
    finally:
        animal.LANGUAGE.update(before)
    assert len(model.get_decoder().layers) == DEPTH
    if attention:
        model.set_attn_implementation(attention)
    return model


def dropped_columns(name, inputs, attached):
    """By layer: ``[B, L]`` bool, the columns of the full prompt that the layer does without."""
    places = visual(name, inputs).nonzero()
    found = {}
    for layer in range(DEPTH):
        stages = [at for at in attached.dropped.kept if at <= layer]
        gone = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
        offset = 0
        for number, entered in enumerate(attached.last.kept):
            before = attached.last.report.tokens_before[number]
            left = entered[attached.dropped.kept[max(stages)][number]] if stages else entered
            flags = torch.ones(before, dtype=torch.bool)
            flags[left] = False
            rows, columns = places[offset : offset + before][flags].T
            gone[rows, columns] = True
            offset += before
        found[layer] = gone
    return found


@contextmanager
def masked_from(model, inputs, gone):
    """The stock model, each layer given a mask without the columns that are gone there."""

    def hook(index):
        def pre(layer, arguments, options):
            states = arguments[0] if arguments else options["hidden_states"]
            width, new = gone[0].shape[1], states.shape[1]
            cache = options.get("past_key_values")
            seen = 0 if cache is None else int(cache.get_seq_length(index))
            copies = len(states) // len(gone[0])
            allowed = (inputs["attention_mask"].bool() & ~gone[index]).repeat_interleave(copies, dim=0)
            allowed = torch.nn.functional.pad(allowed, (0, max(0, seen + new - width)), value=True)[
                :, : seen + new
            ]
            causal = torch.ones(new, seen + new, dtype=torch.bool).tril(seen)
            mask = (causal & allowed[:, None])[:, None] | torch.eye(seen + new, dtype=torch.bool)[-new:]
            if model.config.get_text_config()._attn_implementation == "eager":
                mask = torch.where(mask, 0.0, torch.finfo(states.dtype).min)
            return arguments, {**options, "attention_mask": mask}

        return pre

    layers = model.get_decoder().layers
    handles = [
        layer.register_forward_pre_hook(hook(index), with_kwargs=True) for index, layer in enumerate(layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def rows_of(logits, counts, side):
    return [row[-count:] if side == "left" else row[:count] for row, count in zip(logits, counts, strict=True)]


def difference(name, model, prompt, method, keep):
    inputs = ZOO[name].prompt(**PROMPTS[prompt])
    inputs.pop("labels", None)
    with torch.no_grad(), foveate.attach(model, method, keep=keep) as attached:
        ours = model(**inputs).logits
    gone = dropped_columns(name, inputs, attached)
    with torch.no_grad(), masked_from(model, inputs, gone):
        expected = model(**inputs).logits
    stays = inputs["attention_mask"].bool() & ~gone[DEPTH - 1]
    side = "left" if bool(attached.last["attention_mask"][:, -1].all()) else "right"
    found = torch.cat(rows_of(ours, stays.sum(1).tolist(), side))
    return float((found - expected[stays]).abs().max()), attached


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", INSIDE)
def test_logits_equal_the_prompt_masked_from_the_layer_on(name, method, prompt):
    worst, attached = difference(name, deep(name), prompt, METHODS[method], 0.4)
    assert worst < 1e-4
    entered = [len(kept) for kept in attached.last.kept]
    assert entered == attached.last.report.tokens_before
    for number, counts in enumerate(attached.last.report.tokens_per_layer):
        assert counts[0] == entered[number]
        assert counts == sorted(counts, reverse=True)
        assert counts[-1] < counts[0]
