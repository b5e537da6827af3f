"""Attention in the towers, and which token a patch belongs to, family by family, against the stock towers."""

import threading
from contextlib import contextmanager

import pytest
import torch

import foveate
from foveate.encode import encode
from foveate.families import FAMILIES, PIXELS
from foveate.tokens import Signal
from test_families import NAMES, model_of
from zoo import ZOO

ATTENTION = frozenset({Signal.RECEIVED_ATTENTION})


def family_of(name):
    return FAMILIES[model_of(name).config.model_type]


def kind_of(inputs):
    return next(kind for kind, pixels in PIXELS.items() if pixels in inputs)


def encoded(name, inputs, signals=frozenset()):
    with torch.no_grad():
        return encode(model_of(name), family_of(name), inputs, signals)


@contextmanager
def recorded_attention(layer, monkeypatch):
    """Of a stock layer under SDPA: whole attention matrices ``[B, n, n]``, mean over heads, and who sees whom."""
    stock, found, inside = torch.nn.functional.scaled_dot_product_attention, [], [False]

    def recorder(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **options):
        if inside[0]:
            scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
            allowed = torch.ones_like(scores, dtype=torch.bool)
            if attn_mask is not None:
                allowed = allowed & (attn_mask if attn_mask.dtype == torch.bool else attn_mask > -1e9)
            found.append((scores.masked_fill(~allowed, -torch.inf).softmax(-1).mean(1), allowed[:, 0]))
        return stock(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recorder)
    handles = [
        layer.register_forward_pre_hook(lambda *_: inside.__setitem__(0, True)),
        layer.register_forward_hook(lambda *_: inside.__setitem__(0, False)),
    ]
    yield found
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("name", NAMES)
def test_received_attention_is_the_column_mean_of_the_towers_matrix(name, monkeypatch):
    model, family, inputs = model_of(name), family_of(name), ZOO[name].prompt((2, 1))
    kind = kind_of(inputs)
    layer = family.attention(model, kind)
    with recorded_attention(layer, monkeypatch) as matrices:
        encoded(name, inputs)
    expected = []
    for weights, allowed in matrices:
        for matrix, sees in zip(weights, allowed, strict=True):
            real = sees.any(0)  # padding is seen by none
            columns = (matrix[real].nan_to_num() * sees[real]).sum(0) / sees[real].sum(0).clamp(min=1)
            expected.append(columns)
    carried = family.carry(model, inputs, kind, expected)
    for tokens, scores in zip(encoded(name, inputs, ATTENTION).images, carried, strict=True):
        ours = tokens.received_attention
        assert torch.allclose(ours[~tokens.locked] if len(scores) < len(ours) else ours, scores, atol=1e-6)
        assert (ours[~tokens.locked] > 0).all()
        assert (ours[tokens.locked] == 0).all()


@pytest.mark.parametrize("name", [*(name for name in NAMES if name.startswith("llava_")), "llava", "internvl"])
def test_cls_attention_is_the_first_row(name, monkeypatch):
    model, family, inputs = model_of(name), family_of(name), ZOO[name].prompt((2, 1))
    if not family.has_cls(model):
        assert "onevision" in name or "pixtral" in name
        with pytest.raises(foveate.MissingSignal, match="no CLS token"):
            foveate.prune(model, inputs, foveate.ResPrune(alpha=0, seed="cls"), keep=5)
        return
    kind = kind_of(inputs)
    with recorded_attention(family.attention(model, kind), monkeypatch) as matrices:
        encoded(name, inputs)
    first = [matrix[0] for weights, _ in matrices for matrix in weights]
    carried = family.carry(model, inputs, kind, first)
    for tokens, scores in zip(
        encoded(name, inputs, frozenset({Signal.CLS_ATTENTION})).images, carried, strict=True
    ):
        assert torch.allclose(tokens.cls_attention[~tokens.locked], scores, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_patchs_score_goes_to_the_token_made_of_it(name):
    """Change a few pixels: the patch that changes most in the tower is carried to the token that changes most."""
    model, family, inputs = model_of(name), family_of(name), ZOO[name].prompt((2, 1))
    kind = kind_of(inputs)
    layer, seen = family.attention(model, kind), []
    handle = layer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"]).detach()),
        with_kwargs=True,
    )
    before, states = encoded(name, inputs).images, seen.pop()
    lengths = [len(scores) for scores in _sequences(layer, lambda: encoded(name, inputs))]
    seen.clear()
    pixels = inputs[PIXELS[kind]]
    generator, agreed, tried = torch.Generator().manual_seed(0), 0, 0
    for _ in range(20):
        place = torch.randint(pixels.numel(), (1,), generator=generator)
        changed = pixels.flatten().clone()
        changed[place] += 3 if changed[place] != 0 else 0  # zeros may mark padding
        after = encoded(name, {**inputs, PIXELS[kind]: changed.reshape(pixels.shape)}).images
        moved = (seen.pop() - states).norm(dim=-1).flatten()
        if moved.max() < 1e-6:
            continue
        hot = torch.zeros_like(moved)
        hot[moved.argmax()] = 1
        carried = family.carry(model, inputs, kind, list(hot.split(lengths)))
        change = [
            (new.features - old.features).norm(dim=-1)[~old.locked] for new, old in zip(after, before, strict=True)
        ]
        scores = torch.cat(
            [
                image[~old.locked] if len(image) == len(old.locked) else image
                for image, old in zip(carried, before, strict=True)
            ]
        )
        if scores.max() == 0:  # a patch cut away, or the CLS token
            continue
        agreed += int(scores[torch.cat(change).argmax()] > 0)
        tried += 1
    handle.remove()
    assert tried >= 5
    assert agreed >= 0.6 * tried  # later layers mix what they see; by chance it would be a tenth


def _sequences(layer, run):
    from foveate.vision_attention import attention_tap

    with attention_tap(layer, first=False) as captured:
        run()
    return captured


def test_other_threads_are_not_listened_to():
    name = "qwen2_5_vl"
    inputs = ZOO[name].prompt((1,))
    alone = encoded(name, inputs, ATTENTION).images[0].received_attention
    found, stop = [], threading.Event()

    def others():
        while not stop.is_set():
            encoded(name, ZOO[name].prompt((2,), seed=1), ATTENTION)

    thread = threading.Thread(target=others)
    thread.start()
    for _ in range(5):
        found.append(encoded(name, inputs, ATTENTION).images[0].received_attention)
    stop.set()
    thread.join()
    assert all(torch.allclose(scores, alone, atol=1e-6) for scores in found)
