"""A cache knows what it holds: whatever is done to it, the next turn is right, or refused in one line."""

import copy
import io
import pickle
from contextlib import ExitStack
from functools import cache

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, QuantizedCache, StaticCache
from transformers.cache_utils import StaticLayer

import foveate
from conftest import CACHE
from test_families import model_of
from zoo import ZOO
from zoo.animal import TEXT

RRQR = foveate.RRQR()
LONG = 200  # columns that a static cache holds

# Everything below meets one row, and these models: one axis of positions, several, windows beside full attention.
MODELS = ("llava", "qwen2_5_vl", "gemma3")
CACHES = {
    "none given": lambda config: None,
    "dynamic": lambda config: DynamicCache(),
    "of the config": lambda config: DynamicCache(config=config),
    "static": lambda config: StaticCache(config=config, max_cache_len=LONG),
    "fp8": lambda config: QuantizedCache("fp8", config),
}
if not hasattr(transformers.cache_utils, "Fp8QuantizedLayer"):  # older versions know no such cache
    del CACHES["fp8"]


def text(length, seed=5, rows=1):
    return torch.randint(TEXT.start, TEXT.stop, (rows, length), generator=torch.Generator().manual_seed(seed))


def pickled(kv_cache):
    file = io.BytesIO()
    torch.save(kv_cache, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def moved(kv_cache):
    """To another device and back, as far as a machine without a GPU can."""
    for layer in kv_cache.layers:
        layer.keys, layer.values = layer.keys.to("cpu", copy=True), layer.values.to("cpu", copy=True)
    return kv_cache


def cropped(count):
    def crop(kv_cache):
        kv_cache.crop(-count)
        return kv_cache

    return crop


KEEPING = {
    "as it is": lambda kv_cache: kv_cache,
    "copied": copy.deepcopy,
    "copied twice": lambda kv_cache: copy.deepcopy(copy.deepcopy(kv_cache)),
    "copied flat": copy.copy,
    "pickled": pickled,
    "pickled plainly": lambda kv_cache: pickle.loads(pickle.dumps(kv_cache)),
    "moved": moved,
}
CUT = [
    "dynamic",
    *(["static"] if hasattr(StaticLayer, "crop") else []),
]  # before 5.24 stock cannot cut a static one
CROPPING = {"an answer": 2, "to the prompt": 3, "into the question": 5}


def prompt(name, rows=(1,)):
    inputs = dict(ZOO[name].prompt(rows))
    inputs.pop("labels", None)
    return inputs


def with_text(inputs, ids):
    """The inputs of a prompt with text behind it, as stock takes them."""
    before = inputs["input_ids"].shape
    added = ids.shape[1] - before[1]
    longer = {key: torch.nn.functional.pad(value, (0, added), value=int(key == "attention_mask"))
              for key, value in inputs.items() if value.shape == before}  # fmt: skip
    return {**inputs, **longer, "input_ids": ids}


def right(name, inputs, ids, method=RRQR, keep=5):
    """What follows the conversation ``ids``, asked as one prompt."""
    pruned = foveate.prune(unattached(name), with_text(inputs, ids), method, keep=keep)
    return unattached(name).generate(**pruned, max_new_tokens=4)[:, -4:].tolist()


def answer(model, ids, kv_cache, **options):
    mask = torch.ones_like(ids)
    return model.generate(input_ids=ids, attention_mask=mask, **{CACHE: kv_cache}, max_new_tokens=4, **options)[
        :, -4:
    ].tolist()


def first(name, kind="none given", rows=(1,), new=4):
    """A first answer of ``new`` tokens inside a block: its prompt, its ids, its cache."""
    model, inputs = model_of(name), prompt(name, rows)
    own = CACHES[kind](model.config.get_text_config())
    options = {} if own is None else {CACHE: own}
    output = model.generate(**inputs, **options, max_new_tokens=new, return_dict_in_generate=True)
    return inputs, output.sequences, output[CACHE]


@cache
def other(name):
    """The same model, another object."""
    return ZOO[name].build()


@cache
def unattached(name):
    """And one that no test attaches to."""
    return ZOO[name].build()


@pytest.mark.parametrize("done", KEEPING)
@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("name", MODELS)
def test_the_next_turn_on_a_cache(name, kind, done):
    if name == "gemma3" and kind == "fp8":
        pytest.skip("stock refuses it beside sliding windows")
    if kind == "fp8" and done == "pickled plainly":
        pytest.skip("torch cannot")
    model = model_of(name)
    with foveate.attach(model, RRQR, keep=5):
        inputs, said, kv_cache = first(name, kind)
        ids = torch.cat([said, text(6)], 1)
        found = answer(model, ids, KEEPING[done](kv_cache))
    if kind != "fp8":  # which rounds
        assert found == right(name, inputs, ids)
    else:
        with foveate.attach(model, RRQR, keep=5):
            again = first(name, kind)[2]
            assert found == answer(model, ids, again)


@pytest.mark.parametrize("crop", CROPPING)
@pytest.mark.parametrize("kind", CUT)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_cropped_cache_goes_on_from_where_it_was_cut(name, kind, crop):
    count, model = CROPPING[crop], model_of(name)
    with foveate.attach(model, RRQR, keep=5):
        inputs, said, kv_cache = first(name, kind)
        ids = torch.cat([said[:, : said.shape[1] - 1 - count], text(6)], 1)
        kv_cache.crop(-count)
        found = answer(model, ids, kv_cache)
    width = inputs["input_ids"].shape[1]
    assert found == right(name, {key: value[:, : ids.shape[1]] if value.shape == (1, width) else value
                                 for key, value in inputs.items()}, ids)  # fmt: skip


def test_a_cache_that_lost_part_of_an_image_is_refused():
    model = model_of("llava")
    with foveate.attach(model, RRQR, keep=5):
        _, said, kv_cache = first("llava")
        kv_cache.crop(-20)
        with pytest.raises(foveate.InvalidInputs, match="cropped into its prompt"):
            answer(model, said, kv_cache)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("way", ["text", "images", "steps"])
def test_a_cache_that_was_reset_is_an_empty_one(kind, way):
    name = "llava"
    model, inputs = model_of(name), prompt(name)
    with foveate.attach(model, RRQR, keep=5):
        fresh = CACHES[kind](model.config.get_text_config())
        used = first(name, kind)[2]
        used.reset()
        found = []
        for kv_cache in (fresh, used):
            options = {CACHE: kv_cache, "max_new_tokens": 4}
            if way == "text":
                found.append(model.generate(input_ids=text(50), **options).tolist())
            elif way == "images":
                found.append(model.generate(**inputs, **options).tolist())
            else:
                with torch.no_grad():
                    found.append(model(input_ids=text(50), **{CACHE: kv_cache}).logits.argmax(-1).tolist())
                    found[-1] += model(input_ids=text(2), **{CACHE: kv_cache}).logits.argmax(-1).tolist()
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_cache_handed_to_another_attached_model(name):
    with foveate.attach(model_of(name), RRQR, keep=5):
        inputs, said, kv_cache = first(name)
    ids = torch.cat([said, text(6)], 1)
    with foveate.attach(other(name), RRQR, keep=7):
        assert answer(other(name), ids, kv_cache) == right(name, inputs, ids)


def test_a_cache_of_another_kind_of_model_is_refused():
    with foveate.attach(model_of("llava"), RRQR, keep=5):
        _, said, kv_cache = first("llava")
    with (
        foveate.attach(model_of("qwen2_5_vl"), RRQR, keep=5),
        pytest.raises(foveate.InvalidInputs, match="another type of model"),
    ):
        answer(model_of("qwen2_5_vl"), torch.cat([said, text(3)], 1), kv_cache)


def test_what_was_filled_elsewhere_is_refused():
    """Outside the block nobody counts; a refilled cache of the same length holds other keys."""
    model = model_of("llava")
    with foveate.attach(model, RRQR, keep=5):
        _, said, kv_cache = first("llava")
    ids = torch.cat([said, text(6)], 1)
    longer, refilled = copy.deepcopy(kv_cache), copy.deepcopy(kv_cache)
    with torch.no_grad():
        model(input_ids=text(2), **{CACHE: longer})
        refilled.reset()
        model(input_ids=text(kv_cache.get_seq_length()), **{CACHE: refilled})
    with foveate.attach(model, RRQR, keep=5):
        for kv in (longer, refilled):
            with pytest.raises(foveate.InvalidInputs, match="filled inside an attach block"):
                answer(model, ids, kv)
        with pytest.raises(foveate.InvalidInputs, match="the whole conversation"):
            answer(model, text(3), kv_cache)


def test_an_interrupted_call_leaves_a_cache_that_is_refused():
    model, inputs = model_of("llava"), prompt("llava")

    def stop(ids, scores):
        raise KeyboardInterrupt

    def stop_layer(*_):
        raise KeyboardInterrupt

    for way in ("generate", "forward"):
        kv_cache = DynamicCache()
        with foveate.attach(model, RRQR, keep=5):
            if way == "generate":
                with pytest.raises(KeyboardInterrupt):
                    model.generate(**inputs, **{CACHE: kv_cache}, max_new_tokens=3, logits_processor=[stop])
            else:
                handle = model.get_decoder().layers[-1].register_forward_hook(stop_layer)
                with pytest.raises(KeyboardInterrupt):
                    model(**inputs, **{CACHE: kv_cache})
                handle.remove()
            ids = torch.cat([inputs["input_ids"], text(3)], 1)
            with pytest.raises(foveate.InvalidInputs, match="interrupted"):
                answer(model, ids, kv_cache)
            kv_cache.reset()
            model.generate(**inputs, **{CACHE: kv_cache}, max_new_tokens=3)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tuples", [False, True])
def test_a_forward_that_prefills_leaves_what_generate_leaves(name, tuples):
    model, inputs = model_of(name), prompt(name)
    ids = torch.cat([inputs["input_ids"], text(5)], 1)
    with torch.no_grad(), foveate.attach(model, RRQR, keep=5):
        output = model(**inputs, use_cache=True, return_dict=not tuples)
        kv_cache = next(one for one in output if hasattr(one, "layers")) if tuples else output[CACHE]
        for kv in (copy.deepcopy(kv_cache), kv_cache):
            assert answer(model, ids, kv) == right(name, inputs, ids)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mask", ["none", "stock's", "pruned"])
@pytest.mark.parametrize("rows", [(1,), (1, 2)])
def test_steps_by_hand_stand_where_generate_puts_them(name, mask, rows):
    model, inputs = model_of(name), prompt(name, rows)
    pruned = foveate.prune(model, inputs, RRQR, keep=5)
    expected = model.generate(**pruned, max_new_tokens=4, output_logits=True, return_dict_in_generate=True)
    masks = {"none": None, "stock's": inputs["attention_mask"], "pruned": pruned["attention_mask"]}
    foveate.prune(model, prompt(name, rows[::-1]), RRQR, keep=9)  # another prompt's rope state
    with torch.no_grad(), foveate.attach(model, RRQR, keep=5):
        output = model(**inputs, use_cache=True)
        for step in range(3):
            token = expected.sequences[:, step - 4 : step - 3]
            shown = masks[mask]
            if shown is not None:
                shown = torch.nn.functional.pad(shown, (0, step + 1), value=1)
            output = model(input_ids=token, attention_mask=shown, **{CACHE: output[CACHE]})
            assert (output.logits[:, -1] - expected.logits[step + 1]).abs().max() < 1e-4
    ids = torch.cat([inputs["input_ids"], expected.sequences[:, -4:]], 1)
    whole = torch.nn.functional.pad(inputs["attention_mask"], (0, 4), value=1)
    with foveate.attach(model, RRQR, keep=5):  # and generate() goes on from there
        on = model.generate(input_ids=ids, attention_mask=whole, **{CACHE: output[CACHE]}, max_new_tokens=2)
    longer = model.generate(**pruned, max_new_tokens=6)
    assert on[:, -2:].tolist() == longer[:, -2:].tolist()


CHOICES = {
    "as they are": (lambda kv_cache: None, [0, 1]),
    "one": (lambda kv_cache: kv_cache.batch_select_indices(torch.tensor([1])), [1]),
    "swapped": (lambda kv_cache: kv_cache.reorder_cache(torch.tensor([1, 0])), [1, 0]),
    "repeated": (lambda kv_cache: kv_cache.batch_repeat_interleave(2), [0, 0, 1, 1]),
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("name", MODELS)
def test_rows_of_a_cache_are_known_wherever_they_went(name, choice):
    model, inputs = model_of(name), prompt(name, (1, 2))
    done, rows = CHOICES[choice]
    with foveate.attach(model, RRQR, keep=5):
        output = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
        done(output[CACHE])
        ids = torch.cat([output.sequences[rows], text(4, rows=len(rows))], 1)
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 7), value=1)[rows]
        found = model.generate(input_ids=ids, attention_mask=mask, **{CACHE: output[CACHE]}, max_new_tokens=3)
    longer = torch.cat([output.sequences[[0, 1]], torch.zeros(2, 4, dtype=torch.long)], 1)
    for place, row in enumerate(rows):
        longer[row, -4:] = ids[place, -4:]
        whole = {**with_text(inputs, longer.clone())}
        pruned = foveate.prune(model, whole, RRQR, keep=5)
        expected = model.generate(**pruned, max_new_tokens=3)[row, -3:]
        assert found[place, -3:].tolist() == expected.tolist()


def test_another_number_of_rows_is_refused():
    model = model_of("llava")
    with foveate.attach(model, RRQR, keep=5):
        _, said, kv_cache = first("llava")
        ids = torch.cat([said, text(3)], 1)
        with pytest.raises(foveate.InvalidInputs, match="2 rows with a KV cache of 1"):
            answer(model, ids.repeat(2, 1), kv_cache)


@pytest.mark.parametrize("done", ["copied", "pickled", "another model"])
def test_what_was_dropped_inside_the_language_model_stays_with_its_cache(done):
    name = "llava"
    model = model_of(name)
    with foveate.attach(model, foveate.FastV(layer=1), keep=5):
        _, said, kv_cache = first(name)
        ids = torch.cat([said, text(4)], 1)
        copied = KEEPING.get(done, lambda same: same)(kv_cache)
        asked = other(name) if done == "another model" else model
        with foveate.attach(asked, RRQR, keep=5), pytest.raises(foveate.InvalidInputs, match="the cache itself"):
            answer(asked, ids, copied)
        answer(model, ids, kv_cache)


def test_without_its_memory_a_cache_is_continued_wrongly():
    """The control."""
    model = model_of("llava")
    with foveate.attach(model, RRQR, keep=5):
        inputs, said, kv_cache = first("llava")
        ids = torch.cat([said, text(6)], 1)
        del kv_cache._foveate_memory
        assert answer(model, ids, kv_cache) != right("llava", inputs, ids)


def test_a_turn_of_continued_is_taken_inside_a_block():
    name = "llava"
    model, inputs = model_of(name), prompt(name)
    with foveate.attach(model, RRQR, keep=5) as attached:
        output = model.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True)
        turn = foveate.continued(attached.last, output, text(6))
        ids = torch.cat([output.sequences, text(6)], 1)
        assert model.generate(**turn, max_new_tokens=4)[:, -4:].tolist() == right(name, inputs, ids)


def test_a_turn_that_is_refused_leaves_the_cache_as_it_was():
    model = model_of("llava")
    with foveate.attach(model, RRQR, keep=5):
        inputs, said, kv_cache = first("llava")
        ids = torch.cat([said, text(6)], 1)
        with pytest.raises(foveate.InvalidInputs, match="max_length=5"):
            model.generate(input_ids=ids, **{CACHE: kv_cache}, max_length=5)
        found = answer(model, ids, kv_cache)
    assert found == right("llava", inputs, ids)


@pytest.mark.parametrize("by_config", [False, True], ids=["argument", "config"])
@pytest.mark.parametrize("method", [RRQR, foveate.FastV(layer=1)], ids=repr)
def test_a_turn_on_a_cache_without_use_of_caches_is_refused(method, by_config):
    model = model_of("llava")
    config = transformers.GenerationConfig(use_cache=False, max_new_tokens=2)
    option = {"generation_config": config} if by_config else {"use_cache": False, "max_new_tokens": 2}
    with foveate.attach(model, method, keep=5):
        _, said, kv_cache = first("llava")
        ids = torch.cat([said, text(6)], 1)
        shown = torch.ones_like(ids)
        with pytest.raises(foveate.InvalidInputs, match="use_cache=False"):
            model.generate(input_ids=ids, attention_mask=shown, **{CACHE: kv_cache}, **option)
        assert len(answer(model, ids, kv_cache))  # the cache is as it was


@pytest.mark.parametrize("kind", CUT)
def test_steps_on_a_cropped_cache(kind):
    """Another question is put in place of the one that was cropped, by hand, and generate() goes on from there."""
    name, count, other_question = "llava", 3, text(4, seed=11)
    model = model_of(name)
    with torch.no_grad(), foveate.attach(model, RRQR, keep=5):
        inputs = prompt(name)
        kv_cache = CACHES[kind](model.config.get_text_config())
        model(**inputs, **{CACHE: kv_cache}, use_cache=True)
        kv_cache.crop(-count)
        model(input_ids=other_question, **{CACHE: kv_cache})
        ids = torch.cat([inputs["input_ids"][:, :-count], other_question, text(2)], 1)
        found = answer(model, ids, kv_cache)
    width = inputs["input_ids"].shape[1]
    shorter = {key: value[:, :-count] if value.shape == (1, width) else value for key, value in inputs.items()}
    assert found == right(name, shorter, ids)


def test_a_cache_holds_no_graph():
    model = model_of("llava")
    with foveate.attach(model, RRQR, keep=5):
        memory = model(**prompt("llava"), use_cache=True)[CACHE]._foveate_memory
    assert not memory.mark.keys.requires_grad
    assert not any(value.requires_grad for value in memory.tensors.values())


STEPS = st.one_of(
    st.tuples(st.just("done"), st.sampled_from(sorted(KEEPING))),
    st.tuples(st.just("crop"), st.integers(1, 4)),
    st.tuples(st.just("step"), st.integers(1, 3)),
    st.tuples(st.just("turn"), st.integers(1, 3)),
    st.tuples(st.just("block"), st.just(0)),
)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(MODELS[:2]),
    kind=st.sampled_from(CUT),
    by_forward=st.booleans(),
    steps=st.lists(STEPS, max_size=5),
)
def test_whatever_is_done_in_whatever_order(name, kind, by_forward, steps):
    """``ids`` are what the cache holds, in the columns of the caller."""
    model, inputs = model_of(name), prompt(name)
    kv_cache, width = CACHES[kind](model.config.get_text_config()), inputs["input_ids"].shape[1]
    with torch.no_grad(), ExitStack() as stack:
        stack.enter_context(foveate.attach(model, RRQR, keep=5))
        ids = inputs["input_ids"]
        if by_forward:
            model(**inputs, **{CACHE: kv_cache}, use_cache=True)
        else:
            ids = model.generate(**inputs, **{CACHE: kv_cache}, max_new_tokens=3)[:, :-1]
        for seed, (what, how) in enumerate(steps):
            if what == "done":
                kv_cache = KEEPING[how](kv_cache)
            elif what == "crop" and ids.shape[1] - how > width - 5:
                kv_cache.crop(-how)
                ids = ids[:, :-how]
            elif what == "step":
                new = text(how, seed)
                model(input_ids=new, **{CACHE: kv_cache})
                ids = torch.cat([ids, new], 1)
            elif what == "turn":
                asked = torch.cat([ids, text(how, seed)], 1)
                ids = model.generate(input_ids=asked, **{CACHE: kv_cache}, max_new_tokens=2)[:, :-1]
            elif what == "block":
                stack.pop_all().close()
                stack.enter_context(foveate.attach(model, RRQR, keep=9))
        whole = torch.cat([ids, text(2, 99)], 1)
        found = answer(model, whole, kv_cache)
    cut = min(width, ids.shape[1])
    shorter = {key: value[:, :cut] if value.shape == (1, width) else value for key, value in inputs.items()}
    assert found == right(name, shorter, whole)
