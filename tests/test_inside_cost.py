"""What dropping inside the language model adds: operations and host reads, counted on the CPU; hooks; masks."""

from itertools import pairwise

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LogitsProcessor, LogitsProcessorList

import foveate
from conftest import CACHE
from foveate.errors import InvalidOption
from foveate.families import FAMILIES
from foveate.hf import names
from foveate.inside import dropping as room
from foveate.inside.dropping import Dropping, dropping
from foveate.methods import UniformGrid
from foveate.parts import Parts
from test_inside import DEPTH, deep
from zoo import ZOO

aten = torch.ops.aten
READS = {
    *(aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.unique_dim, aten._unique2),
    *(aten.unique_consecutive, aten.is_nonzero, aten.equal, aten.bincount),
}
METHODS = {
    "fastv": (foveate.FastV(layer=1), 1),
    "pyramiddrop": (foveate.PyramidDrop(layers=(1, 2, 4)), 3),
    "sparsevlm": (foveate.SparseVLM(layers=(0, 1, 3), recycle_dropped=False), 3),
}
# Operations for each drop, whatever the batch; and more where its rows need a mask.
MOST, MASKED = {"fastv": 32, "pyramiddrop": 60, "sparsevlm": 42}, 28


class Count(TorchDispatchMode):
    """Operations that a GPU would launch, and values that the host would wait for."""

    def __init__(self):
        super().__init__()
        self.operations = self.reads = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        packet = function.overloadpacket
        views = (aten.detach, aten._unsafe_view, aten._local_scalar_dense)
        self.operations += not function.is_view and packet not in views
        masks = packet in (aten.index, aten.index_put_, aten.index_put) and any(
            isinstance(leaf, torch.Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1])
        )
        self.reads += packet in READS or masks
        return function(*args, **(kwargs or {}))


@pytest.fixture
def reads(monkeypatch):
    """Counts what leaves for the host without a dispatch."""
    found = []
    for name in ("tolist", "numpy", "cpu"):
        stock = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *a, _s=stock, _n=name, **o: found.append(_n) or _s(self, *a, **o)
        )
    return found


def pruned_of(name, rows, copies=1):
    """A prompt that keeps everything, without a guard column; so many copies of its rows."""
    model, inputs = deep(name), ZOO[name].prompt(rows)
    inputs = {key: torch.cat([value] * copies) for key, value in inputs.items() if key != "labels"}
    pruned = foveate.prune(model, inputs, UniformGrid(), keep=1.0, positions="compact")
    assert pruned.kept  # worked out when first asked for: not by what is counted
    return model, pruned


def parts_of(method, keep=0.4):
    return Parts.of(method, keep, None).inside


def forward(model, pruned):
    with torch.no_grad():
        return model(**dict(pruned))


@pytest.mark.parametrize(("batch", "equal"), [(1, True), (4, True), (4, False)])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl"])
def test_a_prefill_gains_few_operations_and_no_read(name, method, batch, equal, reads, monkeypatch):
    model, pruned = pruned_of(name, (1,), batch) if equal else pruned_of(name, (1,) * batch)
    dropped, drops = METHODS[method]
    family = FAMILIES[model.config.model_type]
    layout = room.layout_of(model, family, pruned)  # read once, where the prompt is read
    monkeypatch.setattr(room, "layout_of", lambda *_: layout)
    reads.clear()
    with Count() as stock:
        forward(model, pruned)
    before = len(reads)
    with Count() as ours, dropping(model, family, pruned, parts_of(dropped)) as block:
        forward(model, pruned)
    assert len(reads) == 2 * before
    assert ours.reads <= stock.reads  # deepstack is added without reading where
    assert ours.operations - stock.operations <= (MOST[method] + (0 if equal else MASKED)) * drops
    assert block.tokens_per_layer[0][-1] < block.tokens_per_layer[0][0]


def test_recycling_is_computed_once_and_reads_nothing(reads, monkeypatch):
    model, pruned = pruned_of("llava", (1, 2))
    method = foveate.SparseVLM(layers=(0, 1, 3))
    family, called = FAMILIES[model.config.model_type], []
    layout = room.layout_of(model, family, pruned)
    monkeypatch.setattr(room, "layout_of", lambda *_: layout)
    stock = foveate.SparseVLM.recycle
    monkeypatch.setattr(foveate.SparseVLM, "recycle", lambda *given: called.append(1) or stock(*given))
    with Count() as stock_count:
        forward(model, pruned)
    reads.clear()
    with Count() as count, dropping(model, family, pruned, parts_of(method, 0.3)):
        forward(model, pruned)
    assert len(called) == 3 * 3  # drops, images
    assert count.reads <= stock_count.reads
    assert not reads


class Watching(LogitsProcessor):
    """Notes, at each new token, the hooks on the decoder and on its layers."""

    def __init__(self, model):
        self.decoder, self.seen = model.get_decoder(), []

    def __call__(self, ids, scores):
        modules = [self.decoder, *self.decoder.layers, *(layer.self_attn for layer in self.decoder.layers)]
        hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules]
        self.seen.append((hooks[0], hooks[1 : 1 + DEPTH], hooks[1 + DEPTH :]))
        return scores


def hooks_while_decoding(name, method, rows, copies=1, **options):
    model, pruned = pruned_of(name, rows, copies)
    watching = Watching(model)
    processors = LogitsProcessorList([watching])
    with dropping(model, FAMILIES[model.config.model_type], pruned, parts_of(method)):
        model.generate(**pruned, max_new_tokens=3, min_new_tokens=3, logits_processor=processors, **options)
    return watching.seen


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl"])
def test_nothing_runs_while_decoding_where_stock_masks_nothing(name, method):
    for options in ({}, {"num_beams": 2}):
        for decoder, layers, attentions in hooks_while_decoding(name, METHODS[method][0], (1,), 2, **options):
            assert not decoder
            assert not any(layers)
            assert not any(attentions)


def test_layers_that_need_another_mask_keep_their_hook_and_no_other_does():
    ragged = hooks_while_decoding("llava", foveate.FastV(layer=3), (1, 2))
    static = hooks_while_decoding(
        "llava", foveate.FastV(layer=3), (1,), cache_implementation="static", disable_compile=True
    )
    for _, layers, attentions in [*ragged, *static]:
        assert layers == [0, 0, 0, 1, 1]
        assert not any(attentions)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_layers_are_given_the_mask_that_stock_gives_a_prompt_of_their_length(name, method, attention):
    """Prefill and decoding; one row, and rows of equal length."""
    model = deep(name, attention)
    model.set_attn_implementation(attention)  # other tests of its process may have set another
    for copies in (1, 2):
        _, pruned = pruned_of(name, (1,), copies)
        given = [[] for _ in range(DEPTH)]
        with dropping(model, FAMILIES[model.config.model_type], pruned, parts_of(METHODS[method][0])) as drops:
            handles = [
                layer.self_attn.register_forward_pre_hook(
                    lambda module, arguments, options, into=into: into.append(options["attention_mask"]),
                    with_kwargs=True,
                )
                for layer, into in zip(model.get_decoder().layers, given, strict=True)
            ]
            model.generate(**pruned, max_new_tokens=3, min_new_tokens=3)
        for handle in handles:
            handle.remove()
        width = pruned["input_ids"].shape[1]
        for layer, masks in enumerate(given):
            left = width - drops.tokens_per_layer[0][0] + drops.tokens_per_layer[0][layer]
            assert len(masks) == 3
            if attention == "sdpa":
                assert masks == [None] * 3
            else:
                lengths = [(left, left), (1, left + 1), (1, left + 2)]
                assert [tuple(mask.shape[2:]) for mask in masks] == lengths


def test_masks_are_made_once_a_drop(monkeypatch):
    model, pruned = pruned_of("llava", (1, 2))
    made, stock = [], names.causal_mask
    monkeypatch.setattr(names, "causal_mask", lambda *given: made.append(given[-1]) or stock(*given))
    with dropping(model, FAMILIES["llava"], pruned, parts_of(foveate.PyramidDrop(layers=(1, 3)))):
        forward(model, pruned)
    assert made == [1, 3]


ERRORS = (KeyboardInterrupt, SystemExit, GeneratorExit, RuntimeError, TimeoutError)
PLACES = {
    "layer": lambda model: model.get_decoder().layers[2],
    "heard layer": lambda model: model.get_decoder().layers[0].self_attn,
    "projection": lambda model: model.get_decoder().layers[1].self_attn.k_proj,
    "norm": lambda model: model.get_decoder().layers[1].input_layernorm,
    "decoder": lambda model: model.get_decoder(),
    "head": lambda model: model.lm_head,
}


def untouched(model):
    decoder = model.get_decoder()
    modules = [decoder, *decoder.layers, *(layer.self_attn for layer in decoder.layers)]
    return not any(module._forward_hooks or module._forward_pre_hooks for module in modules) and all(
        layer.self_attn.config is decoder.config for layer in decoder.layers
    )


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("method", METHODS)
def test_whatever_leaves_a_block_takes_everything_off(method, place, error):
    model, pruned = pruned_of("qwen3_vl", (1, 2))
    expected = forward(model, pruned).logits
    drops = Dropping(model, FAMILIES["qwen3_vl"], pruned, parts_of(METHODS[method][0]))

    def fail(*_):
        raise error

    def block():
        with drops.hooked():
            forward(model, pruned)

    handle = PLACES[place](model).register_forward_hook(fail)
    with pytest.raises(error):
        block()
    handle.remove()
    assert untouched(model)
    assert torch.equal(forward(model, pruned).logits, expected)
    drops.close()
    assert untouched(model)


def test_a_block_abandoned_half_way_is_closed():
    model, pruned = pruned_of("llava", (1,))
    drops = Dropping(model, FAMILIES["llava"], pruned, parts_of(foveate.FastV(layer=1)))

    def steps():
        with drops.hooked():
            yield forward(model, pruned)
            yield forward(model, pruned)

    abandoned = steps()
    next(abandoned)
    del abandoned
    assert untouched(model)
    block = drops.hooked()
    block.__enter__()
    drops.close()
    drops.close()
    assert untouched(model)
    block.__exit__(None, None, None)


def test_a_row_of_padding_alone_is_as_in_stock():
    model, inputs = deep("llava"), ZOO["llava"].prompt((1,))
    inputs.pop("labels", None)
    ids = torch.cat([inputs["input_ids"], torch.zeros_like(inputs["input_ids"])])
    mask = torch.cat([torch.ones_like(ids[:1]), torch.zeros_like(ids[:1])])
    for method, _ in METHODS.values():
        with foveate.attach(model, method, keep=0.4):
            alone = model.generate(**inputs, max_new_tokens=3)
            beside = model.generate(**{**inputs, "input_ids": ids, "attention_mask": mask}, max_new_tokens=3)
        assert torch.equal(beside[:1], alone)
        assert beside.shape == (2, alone.shape[1])


def test_a_method_that_recycles_other_than_it_says_is_refused():
    class Odd(foveate.SparseVLM):
        def recycle(self, dropped, scores):
            return None

    model, pruned = pruned_of("llava", (1,))
    refused = pytest.raises(InvalidOption, match="allowed are as many as its recycled")
    with refused, dropping(model, FAMILIES["llava"], pruned, parts_of(Odd(layers=(0, 1, 3)), 0.3)):
        forward(model, pruned)


def test_steps_see_each_others_caches():
    """Decoding without a hook equals decoding the same prompt anew at each step."""
    model, pruned = pruned_of("llava", (1,), 2)
    method = parts_of(foveate.PyramidDrop(layers=(1, 3)))
    with dropping(model, FAMILIES["llava"], pruned, method):
        cached = model.generate(**pruned, max_new_tokens=4, output_logits=True, return_dict_in_generate=True)
    with dropping(model, FAMILIES["llava"], pruned, method):
        anew = model.generate(
            **{**pruned, "use_cache": False}, max_new_tokens=4, output_logits=True, return_dict_in_generate=True
        )
    stored = [cached[CACHE].get_seq_length(layer) for layer in range(DEPTH)]
    assert all(shallow >= deeper for shallow, deeper in pairwise(stored))
    for one, other in zip(cached.logits, anew.logits, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_several_tokens_on_a_shortened_cache_are_as_one_by_one(attention):
    """Hooks that went after the prefill come back for a turn, whose tokens must not see one another's future."""
    model, pruned = pruned_of("llava", (1,))
    model, method = deep("llava", attention), parts_of(foveate.PyramidDrop(layers=(1, 3)))
    width, new = pruned["input_ids"].shape[1], torch.tensor([[5, 6, 7, 8]])
    told = []
    for pieces in ([new], new.split(1, dim=1)):
        drops, cache, seen, logits = Dropping(model, FAMILIES["llava"], pruned, method), None, width, []
        with drops.hooked():
            cache = forward(model, pruned)[CACHE]
        for piece in pieces:
            places = torch.arange(seen, seen + piece.shape[1])[None]
            seen += piece.shape[1]
            given = {
                "input_ids": piece,
                "position_ids": places,
                "attention_mask": torch.ones(1, seen),
                CACHE: cache,
            }
            with drops.hooked(), torch.no_grad():
                logits.append(model(**given).logits)
        told.append(torch.cat(logits, dim=1))
    assert torch.allclose(*told, atol=1e-4)
