"""Attention in the towers, and which token a patch belongs to, family by family, against the stock towers.

Where tokens must be told apart by the pixels that they are made of, the towers are deaf: their attention gives
zeros. What mixes neighbours no more shows exactly where each patch goes.
"""

import threading
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain

import pytest
import torch
from transformers.vision_utils import get_vision_window_index

import foveate
from encoding import carried as carried_by
from encoding import encoded_prompt
from foveate.families import FAMILIES, PIXELS
from foveate.tokens import Signal
from test_families import NAMES, model_of
from zoo import ZOO

INTERPOLATED = {"llava_onevision", "llava_onevision_video"}  # where it shrinks images, and in videos
ATTENTION = frozenset({Signal.RECEIVED_ATTENTION})


def family_of(name):
    return FAMILIES[model_of(name).config.model_type]


def kind_of(inputs):
    return next(kind for kind, pixels in PIXELS.items() if pixels in inputs)


def encoded(name, inputs, signals=frozenset()):
    with torch.no_grad():
        return encoded_prompt(model_of(name), inputs, signals, family_of(name))


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
    carried = carried_by(family, model, inputs, kind, expected)
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
    carried = carried_by(family, model, inputs, kind, first)
    for tokens, scores in zip(
        encoded(name, inputs, frozenset({Signal.CLS_ATTENTION})).images, carried, strict=True
    ):
        assert torch.allclose(tokens.cls_attention[~tokens.locked], scores, atol=1e-6)


@pytest.fixture
def deaf(monkeypatch):
    """Towers whose patches do not see one another."""

    def silence(query, *arguments, **options):
        return torch.zeros_like(query)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", silence)


@pytest.mark.usefixtures("deaf")
@pytest.mark.parametrize("name", NAMES)
def test_a_patchs_score_goes_to_the_token_made_of_it(name):
    """Change a pixel: the patch that changes in the tower is carried to the tokens that change, to no other."""
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
    generator, tried = torch.Generator().manual_seed(0), 0
    for _ in range(20):
        place = torch.randint(pixels.numel(), (1,), generator=generator)
        changed = pixels.flatten().clone()
        changed[place] += 3 if changed[place] != 0 else 0  # zeros may mark padding
        after = encoded(name, {**inputs, PIXELS[kind]: changed.reshape(pixels.shape)}).images
        hot = ((seen.pop() - states).norm(dim=-1) > 1e-4).flatten()
        if not hot.any():  # padding
            continue
        assert hot.sum() == 1
        carried = carried_by(family, model, inputs, kind, hot.float().split(lengths))
        for new, old, scores in zip(after, before, carried, strict=True):
            free = ~old.locked
            moved = movement(old, new) > 0
            assert not moved[old.locked].any()
            assert moved[free].tolist() == (scores[free] if len(scores) == len(free) else scores).gt(0).tolist()
            tried += int(moved.any())
    handle.remove()
    assert tried >= 5


# As many windows as there are, full ones and cut ones, one image and several, with and without steps in time.
@pytest.mark.parametrize(
    "grids",
    [[(1, 10, 14)], [(1, 14, 6)], [(3, 6, 10)], [(1, 12, 8), (1, 2, 18), (1, 6, 6)], [(2, 10, 6), (1, 4, 4)]],
)
def test_windows_are_put_back_in_the_order_of_the_towers_own(grids):
    model, grid = model_of("qwen2_5_vl"), torch.tensor(grids)
    vision = model.config.vision_config
    order, _ = get_vision_window_index(grid, vision.spatial_merge_size, vision.window_size, vision.patch_size)
    scores = order.float().repeat_interleave(vision.spatial_merge_size**2)  # as the tower holds them
    carried = family_of("qwen2_5_vl").carry(model, {"image_grid_thw": grid}, "image", scores, [len(scores)])
    assert len(carried) == sum(t * h * w // 4 for t, h, w in grids)
    assert carried.tolist() == [*range(len(order))]


@pytest.mark.usefixtures("deaf")
@pytest.mark.parametrize("name", NAMES)
def test_a_line_of_the_picture_is_that_line_of_its_grid(name):
    """Other pixels in one row or column change the tokens of that row or column in `pruned.grids`, and no other.

    Where neighbours are interpolated, they change most.
    """
    shape = (1, 1, 1)
    inputs, pictures = ZOO[name].prompt(shape), [*chain(*ZOO[name].pictures(shape, torch.Generator()))]
    shapes = foveate.prune(model_of(name), inputs, foveate.RRQR(), keep=1.0).grids
    before = encoded(name, inputs).images
    for index, grid, axis, line in lines_of(pictures):
        after = encoded(name, with_other_pixels(name, inputs, pictures, index, grid, axis, line)).images
        assert [picture for picture, moved in enumerate(map(movement, before, after)) if moved.any()] == [index]
        grids = movement(before[index], after[index])[~before[index].locked].split(
            [height * width for height, width in shapes[index]]
        )
        assert [number for number, moved in enumerate(grids) if moved.any()] == [grid]
        moved = grids[grid].reshape(shapes[index][grid])
        if name in INTERPOLATED:
            assert int(moved.mean(dim=1 - axis).argmax()) == line
        else:
            expected = torch.zeros_like(moved, dtype=torch.bool)
            expected.select(axis, line).fill_(True)
            assert (moved > 0).equal(expected)


def lines_of(pictures):
    """All rows (axis 0) and columns (axis 1) of tokens, as the zoo's pictures have them."""
    for index, picture in enumerate(pictures):
        grids, *places = torch.broadcast_tensors(*picture.places)
        for grid in range(int(grids.max()) + 1):
            for axis in (0, 1):
                yield from (
                    (index, grid, axis, line) for line in range(int(places[axis][grids == grid].max()) + 1)
                )


def with_other_pixels(name, inputs, pictures, index, grid, axis, line):
    pixels = PIXELS[kind_of(inputs)]
    marks = [torch.zeros_like(picture.tensors[pixels]) for picture in pictures]
    grids, *places = pictures[index].places
    marks[index] += ((grids == grid) & (places[axis] == line)).float()
    rows = [
        [replace(picture, tensors={**picture.tensors, pixels: mark})]
        for picture, mark in zip(pictures, marks, strict=True)
    ]
    marked = ZOO[name].collate(rows)[pixels] > 0
    return {**inputs, pixels: torch.where(marked, 1 - inputs[pixels], inputs[pixels])}


def movement(before, after):
    """``[N]``: how much each token differs, 0 where it does by rounding alone."""
    moved = (after.features - before.features).norm(dim=-1)
    return torch.where(moved > 1e-4, moved, 0)


def _sequences(layer, run):
    from taps import attention_tap

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
