"""What a forward is given beside pixels: cut by name, made anew, handed to the encoder, or refused by name.

The names come from the signatures of the model classes and of their loss. Arguments in the other forms that stock
takes (lists, arrays, other types) are taken, and a pruned prompt can be sent to another process.
"""

import copy
import inspect
import io
import pickle
from functools import cache

import pytest
import torch
from transformers.loss.loss_utils import ForCausalLMLoss, fixed_cross_entropy
from transformers.utils.generic import TransformersKwargs

import foveate
from conftest import IMAGE_TOKEN, tiny_prompt
from foveate.families import PIXELS
from foveate.flow.shrink import PER_TOKEN, REPLACED
from foveate.hf import names
from foveate.methods import METHODS, Inside
from test_families import NAMES, masked, model_of
from zoo import ZOO
from zoo.animal import END, IMAGE, PAD

KINDS = ("llava_next", "llava_onevision", "mistral3", "internvl", "qwen2_5_vl", "qwen3_vl_video", "gemma3")


@cache
def arguments_of(name):
    """All that a forward of this model can be given by name, and does not hand to its image or video encoder."""
    model = model_of(name)
    forwards = (type(model).forward, type(model.base_model).forward, ForCausalLMLoss, fixed_cross_entropy)
    signed = {
        parameter.name
        for forward in forwards
        for parameter in inspect.signature(forward).parameters.values()
        if parameter.kind is not parameter.VAR_KEYWORD and parameter.name != "self"
    }
    encoded = {argument for kind in (*PIXELS, "audio") for argument in names.encoder_arguments(model, kind)}
    return sorted((signed | set(TransformersKwargs.__annotations__) | {"weights"}) - encoded)


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_per_token_is_cut_made_anew_or_refused(name):
    """Whatever a forward or its loss may read: nothing of the full prompt's shape passes as it is."""
    model, inputs = model_of(name), ZOO[name].prompt()
    shape = inputs["input_ids"].shape
    for argument in set(arguments_of(name)) - {"input_ids", "attention_mask"}:
        given = {**inputs, argument: inputs.get(argument, torch.ones(shape, dtype=torch.long))}
        refused, pruned = None, None
        try:
            pruned = foveate.prune(model, given, foveate.UniformGrid(), keep=0.5)
        except foveate.InvalidInputs as error:
            refused = str(error)
        if argument in PER_TOKEN:
            assert pruned[argument].shape == pruned["input_ids"].shape
        elif argument not in REPLACED and argument != "use_cache" and argument not in inputs:
            assert refused, argument
            assert argument in refused or argument in names.CACHE


@pytest.mark.parametrize("more", [(), (3,), (2, 2)])
def test_an_unknown_tensor_per_token_is_refused_by_name(tiny, more):
    inputs = tiny_prompt((1, 2))
    inputs["weights"] = torch.ones(*inputs["input_ids"].shape, *more)
    with pytest.raises(
        foveate.InvalidInputs, match=r"weights of shape .* looks like one entry per token"
    ) as error:
        foveate.prune(tiny, inputs, foveate.Random(), keep=5)
    assert "\n" not in str(error.value)
    with foveate.attach(tiny, foveate.Random(), keep=5), pytest.raises(foveate.InvalidInputs, match="weights"):
        tiny(**inputs)
    del inputs["weights"]
    pruned = foveate.prune(tiny, inputs, foveate.Random(), keep=5)
    assert torch.equal(cut_by_columns(inputs["input_ids"], pruned), pruned["input_ids"] * (columns(pruned) >= 0))


def columns(pruned):
    return pruned.columns_kept


def cut_by_columns(own, pruned):
    return own.gather(1, columns(pruned).clamp(min=0)).masked_fill(columns(pruned) < 0, 0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", KINDS)
def test_columns_kept_say_where_each_column_was(name, side):
    inputs = ZOO[name].prompt((1, 2), side=side)
    pruned = foveate.prune(model_of(name), inputs, foveate.RRQR(), keep=0.5)
    _, stays = masked(name, inputs, pruned)
    for row, attended in enumerate(pruned["attention_mask"].bool()):
        assert columns(pruned)[row][attended].tolist() == stays[row].nonzero().flatten().tolist()
        padding = columns(pruned)[row][~attended]
        assert not inputs["attention_mask"][row, padding[padding >= 0]].any()


@pytest.mark.parametrize("argument", ["labels", "token_type_ids"])
def test_an_entry_per_token_of_another_shape_is_refused(tiny, argument):
    inputs = tiny_prompt((1,))
    inputs[argument] = torch.zeros(1, inputs["input_ids"].shape[1] + 1, dtype=torch.long)
    with pytest.raises(foveate.InvalidInputs, match=f"{argument} of shape"):
        foveate.prune(tiny, inputs, foveate.Random(), keep=5)


def test_what_the_encoder_takes_may_have_the_prompts_shape():
    """Image sizes are ``[B, 2]``: so is a prompt of two tokens."""
    pixels, sizes = torch.randn(2, 3, 8, 8), torch.tensor([[8, 8]] * 2)
    ids = torch.tensor([[IMAGE, END]] * 2)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    pruned = foveate.prune(model_of("mistral3"), {**inputs, "image_sizes": sizes}, foveate.RRQR(), keep=1)
    assert pruned["input_ids"].tolist() == ids.tolist()


def test_labels_are_padded_with_the_index_that_the_loss_ignores(tiny):
    inputs = tiny_prompt((1, 2))
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE_TOKEN, -1)
    labels = labels.masked_fill(inputs["attention_mask"] == 0, -1)
    other = {**inputs, "labels": labels, "ignore_index": -1}
    usual = {**inputs, "labels": labels.masked_fill(labels == -1, -100)}
    with torch.no_grad(), foveate.attach(tiny, foveate.Random(), keep=5):
        assert torch.equal(tiny(**other).loss, tiny(**usual).loss)


FORMS = {
    "list": lambda value: value.tolist(),
    "array": lambda value: value.numpy(),
    "list of tensors": list,
    "list of arrays": lambda value: list(value.numpy()),
    "int32": lambda value: value.int(),
    "bool": lambda value: value.bool(),
    "float": lambda value: value.float(),
}


@pytest.mark.filterwarnings("ignore:Creating a tensor from a list of numpy")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_forms_that_stock_takes_are_taken(name, form):
    model, inputs = model_of(name), ZOO[name].prompt((1, 2))
    with foveate.attach(model, foveate.UniformGrid(), keep=0.6):
        expected = model(**inputs).logits
    plain = model(**inputs).logits
    for argument in set(inputs) - set(PIXELS.values()):
        given = {**inputs, argument: FORMS[form](inputs[argument])}
        try:
            stock = model(**given).logits
        except (TypeError, AttributeError, RuntimeError, ValueError, IndexError):
            continue
        if torch.allclose(stock, plain, atol=1e-4):
            with foveate.attach(model, foveate.UniformGrid(), keep=0.6):
                assert torch.allclose(model(**given).logits, expected, atol=1e-4), argument


def test_control_image_sizes_are_among_the_forms():
    """The test above compares nothing where stock takes nothing."""
    inputs = ZOO["llava_next"].prompt((1, 2))
    for form in ("list", "array", "list of tensors", "list of arrays", "int32"):
        given = {**inputs, "image_sizes": FORMS[form](inputs["image_sizes"])}
        assert torch.equal(model_of("llava_next")(**given).logits, model_of("llava_next")(**inputs).logits)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "glm4v"])
def test_positions_that_cannot_be_found_are_one_line(name):
    """Stock fails on a row of padding alone."""
    inputs = ZOO[name].prompt((1, 0))
    inputs["input_ids"][1], inputs["attention_mask"][1] = PAD, 0
    with pytest.raises(foveate.InvalidInputs, match="finds no positions for this prompt"):
        foveate.prune(model_of(name), inputs, foveate.RRQR(), keep=3)


INSIDE = [method() for method in METHODS.values() if issubclass(method, Inside)]


@pytest.mark.parametrize("method", [foveate.RRQR(), *INSIDE], ids=repr)
def test_a_row_of_padding_alone_beside_a_picture(tiny, method):
    inputs = tiny_prompt((1, 0))
    inputs["input_ids"][1], inputs["attention_mask"][1] = 0, 0
    alone = {**inputs, "input_ids": inputs["input_ids"][:1], "attention_mask": inputs["attention_mask"][:1]}
    with foveate.attach(tiny, method, keep=9):
        both, one = (tiny.generate(**given, max_new_tokens=3) for given in (inputs, alone))
    assert both[:1].tolist() == one.tolist()


SENT = {
    "pickle": lambda given: pickle.loads(pickle.dumps(given)),
    "torch.save": lambda given: saved(given),
    "deepcopy": copy.deepcopy,
}


def saved(given):
    file = io.BytesIO()
    torch.save(given, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("way", SENT)
@pytest.mark.parametrize("name", ["llava", "idefics3", "qwen3_vl"])
def test_a_pruned_prompt_can_be_sent_to_a_worker(name, way, beams):
    model = model_of(name)
    pruned = foveate.prune(model, ZOO[name].prompt((1, 2)), foveate.RRQR(), keep=0.5)
    expected = model.generate(**pruned, max_new_tokens=4, num_beams=beams)
    given = dict(pruned)
    for _ in range(2):  # generate() changes encoder outputs in place: what is sent again is as new
        sent = SENT[way](given)
        model.base_model.rope_deltas = None  # a worker's model knows of no prompt
        assert model.generate(**sent, max_new_tokens=4, num_beams=beams).tolist() == expected.tolist()
