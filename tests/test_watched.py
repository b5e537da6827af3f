"""Layers that are watched: they compute what they did, show what they were given, and are as before afterwards."""

import threading
from contextlib import ExitStack

import accelerate
import pytest
import torch
import transformers
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils._python_dispatch import TorchDispatchMode

import foveate
from encoding import encoded_prompt
from foveate.families import FAMILIES
from foveate.hf import tower
from foveate.hf.attention import Seen, watched
from foveate.tokens import Signal
from zoo import ZOO

STUBS = ("stub", "flash_stub")  # of a user's own, one of which flash attention's rules are for
GIVEN = []


def stub(module, query, key, value, attention_mask, **options):
    """Attention, sequence by sequence; it keeps the name that it finds on its module, and what it packs."""
    GIVEN.append((module.config._attn_implementation, options.get("cu_seq_lens_q")))
    lengths = options.get("cu_seq_lens_q")
    sizes = [query.shape[2]] if lengths is None else lengths.diff().tolist()
    parts = zip(*(tensor.split(sizes, dim=2) for tensor in (query, key, value)), strict=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    return torch.cat([attend(*part, scale=options["scaling"]) for part in parts], dim=2).transpose(1, 2), None


for name in STUBS:
    transformers.AttentionInterface.register(name, stub)


def tower_of(name, attention="sdpa"):
    model = ZOO[name].build()
    if attention in STUBS:
        for module in model.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation = attention
    else:
        model.set_attn_implementation(attention)
    family = FAMILIES[model.config.model_type]
    return model, family, family.attention(model, "image")


def run(model, family, inputs, signals=frozenset()):
    with torch.no_grad():
        return encoded_prompt(model, inputs, signals, family).images


@pytest.mark.parametrize("attention", ["eager", "sdpa", *STUBS])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "internvl"])
def test_a_watched_layer_computes_what_it_did(name, attention):
    model, family, layer = tower_of(name, attention)
    inputs = ZOO[name].prompt((2, 1))
    GIVEN.clear()
    expected, before = run(model, family, inputs), list(GIVEN)
    GIVEN.clear()
    config, calls = layer.config, []
    with watched([layer], lambda module, seen: calls.append((module, seen))):
        found = run(model, family, inputs)
        assert layer.config is not config
    assert layer.config is config
    assert config._attn_implementation == attention
    assert calls
    assert all(module is layer and isinstance(seen, Seen) for module, seen in calls)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.features, other.features)
    assert [(own, packed is None) for own, packed in GIVEN] == [(own, packed is None) for own, packed in before]


@pytest.mark.parametrize("signal", [Signal.RECEIVED_ATTENTION, Signal.KEYS], ids=str)
def test_sequences_that_flash_attention_packs_are_those_of_other_backends(signal):
    inputs = ZOO["qwen2_5_vl"].prompt((2, 1))
    told = {}
    for attention in ("sdpa", "flash_stub"):
        torch.manual_seed(0)
        model, family, _ = tower_of("qwen2_5_vl", attention)
        GIVEN.clear()
        told[attention] = [image.signal(signal) for image in run(model, family, inputs, frozenset({signal}))]
    assert any(packed is not None for _, packed in GIVEN)
    for one, other in zip(*told.values(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_blocks_that_overlap_restore_a_layer_once():
    model, family, layer = tower_of("llava")
    inputs, config = ZOO["llava"].prompt((1,)), layer.config
    seen = {"first": 0, "second": 0}

    def count(key):
        return lambda module, _: seen.update({key: seen[key] + 1})

    first, second = ExitStack(), ExitStack()
    first.enter_context(watched([layer], count("first")))
    run(model, family, inputs)
    second.enter_context(watched([layer], count("second")))
    run(model, family, inputs)
    first.close()
    run(model, family, inputs)
    assert layer.config is not config
    second.close()
    assert layer.config is config
    run(model, family, inputs)
    assert seen == {"first": 2, "second": 2}


def test_other_threads_are_not_shown_and_restore_nothing():
    model, family, layer = tower_of("llava")
    inputs, config, seen = ZOO["llava"].prompt((1,)), layer.config, []
    expected = run(model, family, inputs)[0].features
    failed = []

    def work():
        for _ in range(20):
            with tower.tapped(layer) as calls:
                found = run(model, family, inputs)[0].features
            if len(calls) != 1 or not torch.equal(found, expected):
                failed.append(calls)

    threads = [threading.Thread(target=work) for _ in range(3)]
    with watched([layer], lambda module, call: seen.append(call)):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert layer.config is config
    assert not failed
    assert not seen


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, RuntimeError])
@pytest.mark.parametrize("place", ["see", "layer", "block"])
def test_whatever_ends_a_block_restores_the_layer(error, place):
    model, family, layer = tower_of("llava")
    inputs, config = ZOO["llava"].prompt((1,)), layer.config

    def fail(*_):
        raise error

    handle = layer.register_forward_hook(fail) if place == "layer" else None

    def block():
        with watched([layer], fail if place == "see" else lambda *_: None):
            if place == "block":
                fail()
            run(model, family, inputs)

    with pytest.raises((error, foveate.FoveateError)):
        block()
    if handle:
        handle.remove()
    assert layer.config is config
    run(model, family, inputs)


def test_a_layer_that_depends_on_its_backends_name_is_refused():
    class Named(torch.nn.Module):
        config = transformers.LlamaConfig(attn_implementation="sdpa")

        def forward(self, states):
            return states if self.config._attn_implementation in ("eager", "sdpa") else states * 2

    with pytest.raises(foveate.UnsupportedModel, match="something else for each name"), watched([Named()], print):
        raise AssertionError("it was entered")
    with pytest.raises(foveate.MissingSignal, match="attention functions"), tower.tapped(torch.nn.Linear(2, 2)):
        raise AssertionError("it was entered")


def test_wrappers_of_the_model_do_not_matter():
    model, family, layer = tower_of("llava")
    inputs = ZOO["llava"].prompt((1,))
    signals = frozenset({Signal.CLS_ATTENTION})
    expected = run(model, family, inputs, signals)[0].cls_attention
    accelerate.cpu_offload(model, execution_device="cpu")
    assert torch.equal(run(model, family, inputs, signals)[0].cls_attention, expected)
    model, family, layer = tower_of("llava")
    layer.compile(backend="eager")
    for _ in range(2):
        assert torch.allclose(run(model, family, inputs, signals)[0].cls_attention, expected, atol=1e-6)


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count, self.reads = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        packet = function.overloadpacket
        views = (torch.ops.aten.detach, torch.ops.aten._unsafe_view)
        self.count += not function.is_view and packet not in views
        self.reads += packet in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        return function(*args, **(kwargs or {}))


def calls_of(*sizes, dtype=torch.bfloat16, heads=4, keys=2):
    return [
        Seen(torch.randn(1, heads, n, 8, dtype=dtype), torch.randn(1, keys, n, 8, dtype=dtype), None, 0.3, None)
        for n in sizes
    ]


def by_hand(call, first, joint=False):
    query, key = call.query[0].float(), call.key[0].float().repeat_interleave(2, dim=0)
    if joint:
        query, key = (part.transpose(0, 1).flatten(1)[None] for part in (query, key))
    scaling = call.scaling / (len(call.query[0]) ** 0.5 if joint else 1)
    weights = (query @ key.mT * scaling).softmax(-1).mean(0)
    return weights[0] if first else weights.mean(0)


@pytest.mark.parametrize("sizes", [(7,), (7,) * 32, (7, 5, 7, 9, 5)], ids=str)
@pytest.mark.parametrize(("first", "joint"), [(True, False), (False, False), (True, True)])
def test_sequences_of_one_length_are_computed_together(sizes, first, joint, monkeypatch):
    calls = calls_of(*sizes)
    with Operations() as operations:
        scores, lengths = tower.attention(calls, first, joint)
    assert lengths == list(sizes)
    assert torch.allclose(scores, torch.cat([by_hand(call, first, joint) for call in calls]), atol=1e-6)
    assert operations.count <= 12 * len(set(sizes))
    assert operations.reads == 0
    monkeypatch.setattr(tower, "SCORES", 40)  # a few queries at a time
    assert torch.allclose(tower.attention(calls, first, joint)[0], scores, atol=1e-6)
    keys, lengths = tower.keys(calls)
    assert lengths == list(sizes)
    assert torch.equal(keys, torch.cat([call.key[0].transpose(0, 1) for call in calls]))


def test_autocast_and_masks_of_every_form_say_the_same(monkeypatch):
    query, key = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 6, 8)
    real = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    masks = {
        "two axes": real,
        "bool": real[:, None, None].expand(-1, 1, 6, -1),
        "additive": torch.where(real[:, None, None], 0.0, torch.finfo(torch.float32).min),
        "blocks": create_block_mask(lambda b, h, q, k: real[b, k], 2, None, 6, 6, device="cpu"),
    }
    for first in (True, False):
        told = [tower.attention([Seen(query, key, mask, 0.3, None)], first)[0] for mask in masks.values()]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            told.append(tower.attention([Seen(query, key, real, 0.3, None)], first)[0])
        monkeypatch.setattr(tower, "SCORES", 40)
        told.append(tower.attention([Seen(query, key, real, 0.3, None)], first)[0])
        for scores in told:
            assert torch.allclose(scores, told[0], atol=1e-6)
            assert scores[4:6].tolist() == [0, 0]
            assert float(scores.sum()) == pytest.approx(2)
