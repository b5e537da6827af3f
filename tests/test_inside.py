"""Dropping inside the language model equals masking from that layer on; scores equal those of eager attention.

The oracle is the stock model on the full prompt, whose layers are given, from the drop on, a mask without the
tokens dropped. Nothing is shortened there.
"""

import copy
import gc
import threading
import weakref
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import accelerate
import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

import foveate
from conftest import CACHE, COMPILES, PROMPTS, REPEATS_RIGHTLY, features_by_row
from foveate.methods import UniformGrid
from test_families import NAMES, NEW, positions_of, visual
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
    model = fresh(name)
    if attention:
        model.set_attn_implementation(attention)
    return model


def fresh(name):
    before = dict(animal.LANGUAGE)
    animal.LANGUAGE["num_hidden_layers"] = DEPTH
    try:
        model = ZOO[name].build()
    finally:
        animal.LANGUAGE.update(before)
    assert len(model.get_decoder().layers) == DEPTH
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
            cache = options.get(CACHE)
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


MODES = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
}
LEFT = [name for name in PROMPTS if name != "right padding"]


def stock_generate(name, model, inputs, attached, **options):
    inputs = {key: value for key, value in inputs.items() if key != "labels"}
    gone = dropped_columns(name, inputs, attached)
    if "num_beams" in options and not REPEATS_RIGHTLY:
        placed = {**inputs, "position_ids": positions_of(model, inputs, inputs["attention_mask"])}
        inputs = features_by_row(model, inputs, placed)
    with masked_from(model, inputs, gone):
        return model.generate(**inputs, max_new_tokens=NEW, **options)[:, -NEW:].tolist()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prompt", LEFT)
@pytest.mark.parametrize("method", ["fastv", "pyramiddrop", "sparsevlm"])
@pytest.mark.parametrize("name", FEW)
def test_generation_equals_the_prompt_masked_from_the_layer_on(name, method, prompt, mode):
    model, inputs = deep(name), ZOO[name].prompt(**PROMPTS[prompt])
    inputs.pop("labels", None)
    with foveate.attach(model, METHODS[method], keep=0.4) as attached:
        output = model.generate(**inputs, max_new_tokens=NEW, **MODES[mode])
    assert torch.equal(output[:, :-NEW], inputs["input_ids"])
    if (
        mode == "static cache"
    ):  # the oracle's masks are of what was seen, not of all slots: so are a dynamic cache's
        with foveate.attach(model, METHODS[method], keep=0.4):
            expected = model.generate(**inputs, max_new_tokens=NEW)[:, -NEW:].tolist()
    else:
        expected = stock_generate(name, model, inputs, attached, **MODES[mode])
    assert output[:, -NEW:].tolist() == expected


@pytest.mark.parametrize("name", FEW)
def test_later_layers_store_less(name):
    model, inputs = deep(name), ZOO[name].prompt((1,))
    with foveate.attach(model, METHODS["pyramiddrop"], keep=0.3) as attached:
        output = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
    width = attached.last["input_ids"].shape[1]
    counts = attached.last.report.tokens_per_layer[0]
    stored = [output[CACHE].get_seq_length(layer) for layer in range(DEPTH)]
    guard = int((attached.last["attention_mask"] == 0).sum())
    assert stored == [width - (counts[0] - count) - guard * (count < counts[0]) + 2 for count in counts]
    assert stored[-1] < stored[0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("name", FEW)
def test_scores_are_those_of_whole_attention_matrices(name, prompt, attention):
    """FastV's choice from the matrices that eager attention gives out, for every backend that runs."""
    inputs = ZOO[name].prompt(**PROMPTS[prompt])
    inputs.pop("labels", None)
    model = deep(name, attention)
    with torch.no_grad(), foveate.attach(model, foveate.FastV(layer=2), keep=0.4) as attached:
        model(**inputs)
    pruned = attached.last
    entered = dict(foveate.prune(model, inputs, UniformGrid(), keep=1.0))
    with torch.no_grad():
        matrices = deep(name, "eager")(**entered, output_attentions=True).attentions[1]
    deep(name, "sdpa").set_attn_implementation("sdpa")
    ids, mask = pruned["input_ids"], pruned["attention_mask"]
    columns = torch.isin(ids, torch.tensor(ZOO[name].placeholders)).nonzero()
    offset = 0
    for number, kept in enumerate(pruned.kept):
        rows, own = columns[offset : offset + len(kept)].T
        offset += len(kept)
        scores = matrices[rows[0]].mean(dim=0)[int(mask[rows[0]].nonzero()[-1])][own]
        free = ~pruned.locked[number]
        expected = torch.zeros(len(kept), dtype=torch.bool)
        expected[~free] = True
        count = pruned.report.tokens_per_layer[number][2] - int((~free).sum())
        expected[free.nonzero().flatten()[scores[free].topk(count).indices]] = True
        assert attached.dropped.kept[2][number].tolist() == expected.nonzero().flatten().tolist()


@pytest.mark.parametrize("name", FEW)
def test_pyramid_and_sparse_hear_what_they_should(name):
    """The layer and the raters, by hand: PyramidDrop the last token's at the layer, SparseVLM its raters'."""
    model, inputs = deep(name, "eager"), ZOO[name].prompt((1,))
    entered = foveate.prune(model, inputs, UniformGrid(), keep=1.0)
    visual_columns = torch.isin(entered["input_ids"], torch.tensor(ZOO[name].placeholders))[0]
    seen = {}
    hook = model.get_decoder().register_forward_pre_hook(
        lambda module, arguments, options: seen.update(options), with_kwargs=True
    )
    with torch.no_grad():
        matrices = model(**dict(entered), output_attentions=True).attentions
    hook.remove()
    free = ~entered.locked[0]
    places = visual_columns.nonzero().flatten()
    text = torch.arange(int(places[-1]) + 1, entered["input_ids"].shape[1])
    states = seen["inputs_embeds"][0]
    likeness = (states[places] @ states[text].T).softmax(dim=1).mean(dim=0)
    raters = text[likeness > likeness.mean()]
    for method, layer, scores in [
        (foveate.PyramidDrop(layers=(2,)), 2, matrices[2][0].mean(0)[-1]),
        (foveate.SparseVLM(layers=(1, 2, 3), recycle_dropped=False), 2, matrices[1][0].mean(0)[raters].mean(0)),
    ]:
        with torch.no_grad(), foveate.attach(model, method, keep=0.4) as attached:
            model(**inputs)
        count = attached.last.report.tokens_per_layer[0][layer] - int((~free).sum())
        best = free.nonzero().flatten()[scores[places][free].topk(count).indices]
        expected = torch.cat([best, (~free).nonzero().flatten()]).sort().values
        assert attached.dropped.kept[layer][0].tolist() == expected.tolist()
    model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("prompt", LEFT)
@pytest.mark.parametrize("name", FEW)
def test_clusters_stand_for_dropped_tokens(name, prompt):
    """Without a cache everything is computed anew each step, and says the same; clusters count."""
    model, inputs = deep(name), ZOO[name].prompt(**PROMPTS[prompt])
    inputs.pop("labels", None)
    method = foveate.SparseVLM(layers=(0, 1, 3))
    told = []
    for options in ({}, {"use_cache": False}, {"num_beams": 2}, {"num_beams": 2, "use_cache": False}):
        with foveate.attach(model, method, keep=0.3) as attached:
            told.append(model.generate(**inputs, max_new_tokens=NEW, **options).tolist())
    assert told[0] == told[1]
    assert told[2] == told[3]
    with foveate.attach(model, foveate.SparseVLM(layers=(0, 1, 3), recycle_dropped=False), keep=0.3) as without:
        model.generate(**inputs, max_new_tokens=1)
    for more, fewer in zip(
        attached.last.report.tokens_per_layer, without.last.report.tokens_per_layer, strict=True
    ):
        assert all(a >= b for a, b in zip(more, fewer, strict=True))
        assert more != fewer


def test_a_cluster_is_the_mean_of_its_tokens():
    """By hand: the states that enter the layer behind the drop."""
    name = "llava"
    model, inputs = deep(name), ZOO[name].prompt((1,))
    method, seen = foveate.SparseVLM(layers=(0, 1, 3)), {}

    def note(key, layer):
        def hook(module, arguments, options):
            seen[key] = (arguments[0] if arguments else options["hidden_states"]).clone()

        return model.get_decoder().layers[layer].register_forward_pre_hook(hook, with_kwargs=True)

    entered = foveate.prune(model, inputs, UniformGrid(), keep=1.0)
    handle = note("before", 1)
    with torch.no_grad():
        model(**dict(entered))
    handle.remove()
    with torch.no_grad(), foveate.attach(model, method, keep=0.3) as attached:
        layer = model.get_decoder().layers[1]
        inside = layer.self_attn.register_forward_pre_hook(
            lambda module, arguments, options: seen.update(inside=options["hidden_states"].clone()),
            with_kwargs=True,
        )
        model(**inputs)
        inside.remove()
    [gone] = attached.dropped._left[1].gone
    recycled = method.recycle(seen["before"][0, gone.columns], gone.scores)
    assert recycled is not None
    expected = seen["before"][0].clone()
    expected[gone.columns[recycled.places]] = recycled.states
    left = attached.dropped._left[1]
    assert torch.allclose(seen["inside"][0], layer.input_layernorm(expected[left.within[0]]), atol=1e-5)


# Controls: each must fail the comparison that the tests above pass.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FEW)
def test_control_masking_from_another_layer_differs(name, method):
    model, inputs = deep(name), ZOO[name].prompt((1, 2))
    inputs.pop("labels", None)
    with torch.no_grad(), foveate.attach(model, METHODS[method], keep=0.4) as attached:
        ours = model(**inputs).logits
    gone = dropped_columns(name, inputs, attached)
    stays = inputs["attention_mask"].bool() & ~gone[DEPTH - 1]
    found = torch.cat([row[-count:] for row, count in zip(ours, stays.sum(1).tolist(), strict=True)])
    for wrong in (dict.fromkeys(gone, gone[0]), dict.fromkeys(gone, gone[DEPTH - 1])):
        with torch.no_grad(), masked_from(model, inputs, wrong):
            expected = model(**inputs).logits
        assert (found - expected[stays]).abs().max() > 0.01


# Composition, budgets, what is refused


@pytest.mark.parametrize("name", FEW)
def test_a_composition_prunes_the_prompt_and_goes_on_inside(name):
    model, inputs = deep(name), ZOO[name].prompt((1, 2))
    inputs.pop("labels", None)
    both = foveate.Compose(foveate.RRQR(), foveate.FastV(layer=1), foveate.PyramidDrop(layers=(3,)))
    with torch.no_grad(), foveate.attach(model, both, keep=(0.7, 0.6, 0.4)) as attached:
        ours = model(**inputs).logits
    assert (
        attached.last.kept[0].tolist() == foveate.prune(model, inputs, foveate.RRQR(), keep=0.7).kept[0].tolist()
    )
    for before, counts in zip(
        attached.last.report.tokens_before, attached.last.report.tokens_per_layer, strict=True
    ):
        entering = int(before * 0.7 + 0.5)
        assert counts == [entering] + [int(entering * 0.6 + 0.5)] * 2 + [int(entering * 0.4 + 0.5)] * 2
    gone = dropped_columns(name, inputs, attached)
    stays = inputs["attention_mask"].bool() & ~gone[DEPTH - 1]
    with torch.no_grad(), masked_from(model, inputs, gone):
        expected = model(**inputs).logits
    found = torch.cat([row[-count:] for row, count in zip(ours, stays.sum(1).tolist(), strict=True)])
    assert (found - expected[stays]).abs().max() < 1e-4


def test_text_turns_go_on_in_shorter_caches():
    for name in FEW:
        model, inputs = deep(name), ZOO[name].prompt((1,))
        new = torch.randint(animal.TEXT.start, animal.TEXT.stop, (1, 5))
        with foveate.attach(model, METHODS["pyramiddrop"], keep=0.4) as attached:
            first = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
            ids = torch.cat([first.sequences, new], dim=1)
            second = model.generate(input_ids=ids, **{CACHE: first[CACHE]}, max_new_tokens=NEW)
        conversation = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "mm_token_type_ids" in inputs:
            kinds = inputs["mm_token_type_ids"]
            conversation["mm_token_type_ids"] = torch.nn.functional.pad(kinds, (0, ids.shape[1] - kinds.shape[1]))
        assert second[:, -NEW:].tolist() == stock_generate(name, model, conversation, attached)


@pytest.mark.parametrize("given", [True, False], ids=["mask", "padding id"])
@pytest.mark.parametrize("rows", [(1,), (1, 1), (1, 2)], ids=str)
@pytest.mark.parametrize("name", sorted(METHODS))
def test_masked_text_behind_the_prompt_is_refused(name, rows, given):
    model, inputs = deep("llava"), ZOO["llava"].prompt(rows)
    with foveate.attach(model, METHODS[name], keep=0.4):
        first = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, return_dict_in_generate=True)
        pad = torch.full((len(rows), 1), model.generation_config.pad_token_id)
        ids = torch.cat([first.sequences, pad, torch.full_like(pad, animal.TEXT.start)], dim=1)
        mask = {"attention_mask": (ids != pad[0]).long()} if given else {}
        with pytest.raises(foveate.InvalidInputs, match="hides"):
            model.generate(input_ids=ids, **mask, **{CACHE: first[CACHE]}, max_new_tokens=NEW)
        # The cache is as it was: shown all that follows, the same turn is answered.
        shown = inputs["attention_mask"]
        shown = torch.nn.functional.pad(shown, (0, ids.shape[1] - shown.shape[1]), value=1)
        answer = model.generate(input_ids=ids, attention_mask=shown, **{CACHE: first[CACHE]}, max_new_tokens=NEW)
    assert answer.shape[1] == ids.shape[1] + NEW


def test_nothing_is_left_behind():
    model, inputs = deep("qwen3_vl"), ZOO["qwen3_vl"].prompt((1,))
    before = {name: value for name, value in model.get_decoder().__dict__.items() if not name.startswith("_")}
    expected = model.generate(**inputs, max_new_tokens=3)
    with foveate.attach(model, METHODS["fastv"], keep=0.3):
        model.generate(**inputs, max_new_tokens=3)
        broken = model.get_decoder().layers[2].register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError), torch.no_grad():
            model(**inputs)
        broken.remove()
        for layer in model.get_decoder().layers:
            assert not layer._forward_pre_hooks
            assert not layer._forward_hooks
    assert not model._forward_pre_hooks
    assert not model._forward_hooks
    assert not model.get_decoder()._forward_pre_hooks
    assert before == {
        name: value for name, value in model.get_decoder().__dict__.items() if not name.startswith("_")
    }
    assert torch.equal(model.generate(**inputs, max_new_tokens=3), expected)


def test_threads_drop_their_own():
    model = deep("qwen3_vl")
    prompts = [
        ZOO["qwen3_vl"].prompt(rows, seed=seed) for seed, rows in enumerate([(1,), (2,), (1, 2), (2, 0, 1)])
    ]
    told = {}
    with foveate.attach(model, METHODS["pyramiddrop"], keep=0.3):
        expected = [model.generate(**prompt, max_new_tokens=3).tolist() for prompt in prompts]

        def ask(number):
            told[number] = [model.generate(**prompts[number], max_new_tokens=3).tolist() for _ in range(3)]

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(told[number] == [expected[number]] * 3 for number in range(len(prompts)))


@pytest.mark.parametrize("put", ["LoRA", "offload"])
@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_adapters_and_offloaded_weights(name, put):
    inputs = ZOO[name].prompt((1, 2))
    inputs.pop("labels", None)
    outer = plain = fresh(name)
    if put == "LoRA":
        torch.manual_seed(1)
        config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        outer = peft.get_peft_model(plain, config).eval()
    with foveate.attach(outer, METHODS["fastv"], keep=0.4) as attached:
        expected = outer.generate(**inputs, max_new_tokens=NEW)[:, -NEW:].tolist()
    if put == "LoRA":
        assert expected == stock_generate(name, plain, inputs, attached)
        return
    offloaded = accelerate.cpu_offload(plain, "cpu")
    with foveate.attach(offloaded, METHODS["fastv"], keep=0.4):
        assert offloaded.generate(**inputs, max_new_tokens=NEW)[:, -NEW:].tolist() == expected


def test_other_passes_of_the_same_thread_are_left_alone():
    """Guidance, and callers' functions that run the model on something else, of any length."""
    model, inputs = deep("llava"), ZOO["llava"].prompt((1,))
    inputs.pop("labels", None)
    others = [torch.randint(animal.TEXT.start, animal.TEXT.stop, (1, length)) for length in (5, 56, 80)]
    alone = [model(input_ids=ids).logits for ids in others]
    seen = []

    class Asking(LogitsProcessor):
        def __call__(self, ids, scores):
            seen.append([model(input_ids=other).logits for other in others])
            seen[-1].append(model.generate(input_ids=others[0], max_new_tokens=2))
            return scores

    expected_new = model.generate(input_ids=others[0], max_new_tokens=2)
    for options in ({}, {"use_cache": False}):
        with foveate.attach(model, METHODS["fastv"], keep=0.4):
            expected = model.generate(**inputs, max_new_tokens=3, **options)
            asking = LogitsProcessorList([Asking()])
            assert torch.equal(
                model.generate(**inputs, max_new_tokens=3, logits_processor=asking, **options), expected
            )
    assert len(seen) == 6
    for *logits, new in seen:
        assert all(torch.equal(found, right) for found, right in zip(logits, alone, strict=True))
        assert torch.equal(new, expected_new)
    with foveate.attach(model, METHODS["fastv"], keep=0.4) as attached:
        guided = model.generate(**inputs, max_new_tokens=3, guidance_scale=1.5)
    full = dict(inputs)
    with masked_from(model, full, dropped_columns("llava", inputs, attached)):
        plain = model.generate(**inputs, max_new_tokens=3)
    assert guided.shape == plain.shape


def test_nothing_outlives_its_conversation():
    """Caches that generate() gave out are remembered no longer than they live, and hold no model."""
    model, inputs = ZOO["llava"].build(), ZOO["llava"].prompt((1,))
    for method in (METHODS["fastv"], foveate.RRQR()):
        with foveate.attach(model, method, keep=0.4):
            first = model.generate(**inputs, max_new_tokens=2, return_dict_in_generate=True)
            for _ in range(2):
                ids = torch.cat([first.sequences, torch.tensor([[5, 6]])], dim=1)
                first = model.generate(
                    input_ids=ids,
                    **{CACHE: first[CACHE]},
                    max_new_tokens=2,
                    return_dict_in_generate=True,
                )
        kv_cache = weakref.ref(first[CACHE])
        del first
        gc.collect()
        assert kv_cache() is None
    decoder = weakref.ref(model.get_decoder())
    del model
    gc.collect()
    assert decoder() is None


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
@COMPILES
def test_compiled_models(name):
    inputs = ZOO[name].prompt((1,))
    inputs.pop("labels", None)
    model = fresh(name)
    with torch.no_grad(), foveate.attach(model, METHODS["fastv"], keep=0.4):
        expected = model(**inputs).logits
    model.forward = torch.compile(model.forward, backend="eager")
    with torch.no_grad(), foveate.attach(model, METHODS["fastv"], keep=0.4):
        assert (model(**inputs).logits - expected).abs().max() < 1e-5
        model.generate(**inputs, max_new_tokens=2)


@pytest.mark.parametrize("keep", [8, 9, 12])
def test_locked_rows_stay_however_few_are_asked_for(keep):
    model, inputs = deep("llava_next"), ZOO["llava_next"].prompt((1,))
    for method in (METHODS["sparsevlm"], METHODS["pyramiddrop"], METHODS["fastv"]):
        with foveate.attach(model, method, keep=keep) as attached:
            model.generate(**inputs, max_new_tokens=1)
        locked = attached.last.locked[0].nonzero().flatten()
        for layer, (kept,) in attached.dropped.kept.items():
            assert torch.isin(locked, kept).all()
            assert len(kept) == attached.last.report.tokens_per_layer[0][layer]
        assert attached.last.report.tokens_per_layer[0] == sorted(attached.last.report.tokens_per_layer[0])[::-1]
        assert attached.last.report.method == method


@pytest.mark.parametrize("method", METHODS)
def test_all_of_a_budget_keeps_all(method):
    model, inputs = deep("llava"), ZOO["llava"].prompt((1,))
    expected = model.generate(**inputs, max_new_tokens=3)
    for keep in (1.0, 999):
        with foveate.attach(model, METHODS[method], keep=keep) as attached:
            assert torch.equal(model.generate(**inputs, max_new_tokens=3), expected)
        counts = attached.last.report.tokens_per_layer[0]
        assert counts == [counts[0]] * DEPTH


@given(st.integers(1, 700), st.data())
def test_counts_fall_with_the_layers_and_grow_with_the_budget(n, data):
    k = data.draw(st.integers(1, n))
    for method in (foveate.FastV(), foveate.PyramidDrop(), foveate.SparseVLM()):
        counts = [stage.count for stage in method.stages(32, n, k)]
        assert counts == sorted(counts, reverse=True)
        assert all(1 <= count <= n for count in counts)
        more = [stage.count for stage in method.stages(32, n, n)]
        assert more == [n] * len(counts)


def test_counts_of_the_authors():
    assert [stage.count for stage in foveate.PyramidDrop(faithful=True).stages(32, 100, 12)] == [50, 25, 12]
    assert [stage.count for stage in foveate.PyramidDrop().stages(32, 576, 72)] == [288, 144, 72]
    for keep, counts in {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)}.items():
        for faithful in (False, True):
            stages = foveate.SparseVLM(faithful=faithful).stages(32, 576, keep)
            assert [(stage.layer, stage.count) for stage in stages] == list(zip((3, 7, 16), counts, strict=True))
    with pytest.raises(
        foveate.InvalidBudget, match="13 of 100 tokens with faithful=True: allowed are the authors' 12"
    ):
        foveate.PyramidDrop(faithful=True).stages(32, 100, 13)
    with pytest.raises(foveate.InvalidBudget, match="keep=65 with faithful=True: allowed are 192, 128, 96, 64"):
        foveate.SparseVLM(faithful=True).stages(32, 576, 65)
    same = torch.ones(3, 4)
    assert foveate.SparseVLM().raters(torch.randn(5, 4), same).all()
    with pytest.raises(foveate.InvalidFeatures, match="3 text tokens"):
        foveate.SparseVLM(faithful=True).raters(torch.randn(5, 4), same)


def test_a_pyramid_behind_another_drop_starts_from_what_is_left():
    model, inputs = deep("llava"), ZOO["llava"].prompt((1,))
    both = foveate.Compose(foveate.FastV(layer=1), foveate.PyramidDrop(layers=[2, 3, 4]))
    with foveate.attach(model, both, keep=(12, 4)) as attached:
        model.generate(**inputs, max_new_tokens=1)
    counts = attached.last.report.tokens_per_layer[0]
    assert counts[1:] == [12, 12, 8, 4] == [min(12, count) for count in counts[1:]]


def test_a_count_over_what_is_left_keeps_all_of_that():
    model, inputs = deep("llava"), ZOO["llava"].prompt((1,))
    for method, keep in [
        (foveate.Compose(FASTV, foveate.PyramidDrop(layers=(3,))), (3, 5)),
        (foveate.Compose(foveate.RRQR(), foveate.FastV(layer=3)), (3, 5)),
    ]:
        with foveate.attach(model, method, keep=keep) as attached:
            model.generate(**inputs, max_new_tokens=1)
        assert attached.last.report.tokens_per_layer[0][1:] == [3] * 4


def test_faithful_counts_with_a_model():
    model, inputs = deep("llava"), ZOO["llava"].prompt((1,))
    n = ZOO["llava"].tokens((1,))[0]
    with foveate.attach(model, foveate.PyramidDrop(layers=(1, 2, 4), faithful=True), keep=n // 8) as attached:
        model.generate(**inputs, max_new_tokens=1)
    assert attached.last.report.tokens_per_layer[0] == [n, n // 2, n // 4, n // 4, n // 8]
    with foveate.attach(model, foveate.PyramidDrop(faithful=True), keep=1), pytest.raises(foveate.InvalidBudget):
        model.generate(**inputs, max_new_tokens=1)
    refused = pytest.raises(foveate.InvalidBudget, match="keep=36 with faithful=True")  # it has 36 tokens
    with foveate.attach(model, foveate.SparseVLM(layers=(0, 1, 3), faithful=True), keep=64), refused:
        model.generate(**inputs, max_new_tokens=1)


@dataclass(frozen=True)
class Odd(foveate.Inside):
    """A method of one's own."""

    source: ClassVar[str] = "none"
    complexity: ClassVar[str] = "none"
    layer: int = 1
    hears: int = 0
    count: int = 3

    def places(self, depth):
        return ((self.layer, self.hears),)

    def counts(self, n, k, drops):
        return [self.count]


@pytest.mark.parametrize(
    "odd", [Odd(layer=9, hears=8), Odd(layer=0), Odd(hears=2), Odd(hears=-1), Odd(count=0)], ids=repr
)
def test_drops_that_cannot_be(odd):
    model, inputs = deep("llava"), ZOO["llava"].prompt((1,))
    with foveate.attach(model, odd, keep=3), pytest.raises(foveate.InvalidOption, match="asks for Stage"):
        model.generate(**inputs, max_new_tokens=1)
    with foveate.attach(model, Odd(), keep=3) as attached:
        model.generate(**inputs, max_new_tokens=1)
    assert attached.last.report.tokens_per_layer[0][1:] == [3] * 4


def test_steps_by_hand_on_a_shortened_cache_are_refused_inside_the_block():
    model, inputs = deep("llava"), ZOO["llava"].prompt((1,))
    with foveate.attach(model, METHODS["fastv"], keep=0.3):
        output = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
        with pytest.raises(foveate.InvalidInputs, match="go on with generate"):
            model(input_ids=torch.tensor([[5]]), **{CACHE: output[CACHE]})


def test_a_forward_that_fails_is_not_told_as_done():
    model, inputs = deep("llava"), ZOO["llava"].prompt((1,))
    inputs.pop("labels", None)
    with foveate.attach(model, METHODS["fastv"], keep=0.3) as attached:
        broken = model.get_decoder().layers[3].register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError), torch.no_grad():
            model(**inputs)
        broken.remove()
        assert attached.dropped is None


def test_a_copy_inside_a_block_is_refused():
    model = ZOO["llava"].build()
    with (
        foveate.attach(model, foveate.RRQR(), keep=3),
        pytest.raises(foveate.InvalidInputs, match="before or after"),
    ):
        copy.deepcopy(model)
    copy.deepcopy(model)


def test_a_shortened_cache_goes_on_inside_the_block_alone():
    model, inputs = deep("llava"), ZOO["llava"].prompt((1,))
    with foveate.attach(model, METHODS["fastv"], keep=0.3) as attached:
        output = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
    for given_output in (output, copy.deepcopy(output)):
        with pytest.raises(foveate.InvalidInputs, match="layers hold different numbers of tokens"):
            foveate.continued(attached.last, given_output, torch.tensor([[5, 6]]))


def test_text_alone_passes():
    model = deep("llava")
    ids = torch.randint(animal.TEXT.start, animal.TEXT.stop, (1, 9))
    expected = model.generate(input_ids=ids, max_new_tokens=3)
    with foveate.attach(model, METHODS["fastv"], keep=0.3):
        assert torch.equal(model.generate(input_ids=ids, max_new_tokens=3), expected)


FASTV = foveate.FastV(layer=1)
REFUSED = {
    "prune": (lambda model, inputs: foveate.prune(model, inputs, FASTV, keep=3), "with foveate.attach"),
    "configured": (
        lambda model, inputs: told(
            model, inputs, FASTV, 3, generation_config=GenerationConfig(prefill_chunk_size=4)
        ),
        "prefill_chunk_size",
    ),
    "frames": (lambda model, inputs: entered(model, FASTV, keep=3, per_frame=True), "per_frame=True with FastV"),
    "too deep": (
        lambda model, inputs: entered(model, foveate.FastV(layer=9), keep=3),
        "layer=9: allowed are layers 1 to 4",
    ),
    "two drops": (
        lambda model, inputs: told(
            model, inputs, foveate.Compose(FASTV, foveate.PyramidDrop(layers=(1,))), (5, 5)
        ),
        "two drops before layer 1",
    ),
    "one budget": (
        lambda model, inputs: told(model, inputs, foveate.Compose(foveate.RRQR(), FASTV), 5),
        "keep=5: allowed is one",
    ),
    "labels": (
        lambda model, inputs: told(model, {**inputs, "labels": inputs["input_ids"]}, FASTV, 3),
        "labels with",
    ),
    "lookup": (lambda model, inputs: told(model, inputs, FASTV, 3, prompt_lookup_num_tokens=2), "prompt_lookup"),
    "chunks": (lambda model, inputs: told(model, inputs, FASTV, 3, prefill_chunk_size=4), "prefill_chunk_size"),
    "no parts": (lambda model, inputs: foveate.Compose(), "allowed are at most one"),
    "order": (lambda model, inputs: foveate.Compose(FASTV, foveate.RRQR()), "allowed are at most one"),
    "layer": (lambda model, inputs: foveate.FastV(layer=0), "layer=0: allowed are layers 1 or more"),
    "layers": (lambda model, inputs: foveate.PyramidDrop(layers=(3, 2)), "ascending"),
    "no layers": (lambda model, inputs: foveate.PyramidDrop(layers=()), "ascending"),
    "one layer": (lambda model, inputs: foveate.PyramidDrop(layers=3), "layers=3: allowed are ascending"),
    "text": (lambda model, inputs: foveate.SparseVLM(layers="12"), "layers='12': allowed are ascending"),
    "prune both": (
        lambda model, inputs: foveate.prune(model, inputs, foveate.Compose(foveate.RRQR(), FASTV), keep=(3, 2)),
        "with foveate.attach",
    ),
    "two layers": (lambda model, inputs: foveate.SparseVLM(layers=(1, 2)), "three ascending"),
}


def entered(model, method, **options):
    """What is wrong from the start is said at the start."""
    with foveate.attach(model, method, **options):
        raise AssertionError("the block was entered")


def told(model, inputs, method, keep, **options):
    with foveate.attach(model, method, keep=keep):
        if "labels" in inputs:
            return model(**inputs)
        return model.generate(**inputs, max_new_tokens=2, **options)


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    call, message = REFUSED[case]
    inputs = ZOO["llava"].prompt((1,))
    inputs.pop("labels", None)
    with pytest.raises(foveate.FoveateError, match=message):
        call(deep("llava"), inputs)
    assert "generate" not in deep("llava").__dict__


@pytest.mark.parametrize("name", [name for name in AHEAD if name in NAMES])
def test_language_models_that_look_ahead_are_refused(name):
    with pytest.raises(foveate.UnsupportedModel, match="left to right"):
        entered(ZOO[name].build(), FASTV, keep=3)
