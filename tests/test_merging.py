"""Methods that put other tokens in place: means of blocks, and the tokens of a smaller image.

The oracle is the stock model on the full prompt, its embeddings replaced by hand at the places kept, and
``attention_mask = 0`` at all other placeholders; features are worked out by loops and by the stock tower.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import avg_pool2d, interpolate

import foveate
from conftest import IMAGE_TOKEN, PROMPTS, noise, tiny_llava, tiny_prompt
from foveate import AveragePool, DownsampledImage, VisualTokens
from foveate.families.llava import Llava
from foveate.methods.controls.blocks import blocks, lattice
from foveate.prune import prepare
from foveate.select import energy_outside, residual_energy

POOL, SMALL = AveragePool(), DownsampledImage()
# Of 6 x 6 tokens: the size of the lattice, and the places by hand (up and left of the middle).
PLACES = {
    9: (3, 3, [0, 2, 4], [0, 2, 4]),
    4: (2, 2, [1, 4], [1, 4]),
    18: (3, 6, [0, 2, 4], [0, 1, 2, 3, 4, 5]),
}


def grids():
    return st.tuples(st.integers(1, 24), st.integers(1, 24)).flatmap(
        lambda grid: st.tuples(st.just(grid), st.integers(1, grid[0] * grid[1]))
    )


def image(grid, d=8, dtype=torch.float32, seed=0):
    n = grid[0] * grid[1]
    features = torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return VisualTokens(features, (grid,), torch.zeros(n, dtype=torch.bool))


def full_features(model, inputs):
    """``[images, 36, D]`` from the tower and the projector, by hand."""
    tower = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True)
    return model.model.multi_modal_projector(tower.hidden_states[-2][:, 1:])


def small_features(model, inputs, size, layer=-2, **options):
    """The same of images shrunk to ``size`` tokens."""
    pixels = interpolate(
        inputs["pixel_values"], (4 * size[0], 4 * size[1]), mode="bicubic", **{"antialias": True, **options}
    )
    tower = model.model.vision_tower(pixels, interpolate_pos_encoding=True, output_hidden_states=True)
    return model.model.multi_modal_projector(tower.hidden_states[layer][:, 1:])


def replaced(model, inputs, features, places, positions="original"):
    """The full prompt as embeddings, ``features [images, k, D]`` at ``places [k]``, the rest of them masked."""
    embeddings = model.get_input_embeddings()(inputs["input_ids"]).clone()
    mask = inputs["attention_mask"].clone()
    columns = (inputs["input_ids"] == IMAGE_TOKEN).nonzero().reshape(-1, 36, 2)
    for marks, tokens in zip(columns, features, strict=True):
        for row, column in marks.tolist():
            mask[row, column] = 0
        for (row, column), token in zip(marks[places].tolist(), tokens, strict=True):
            mask[row, column] = 1
            embeddings[row, column] = token
    counted = inputs["attention_mask"] if positions == "original" else mask
    position_ids = (counted.cumsum(-1) - 1).clamp(min=0)
    full = {"inputs_embeds": embeddings, "attention_mask": mask, "position_ids": position_ids}
    return full, mask.bool()


def by_hand(model, inputs, method, keep):
    """Features and places, worked out without the library."""
    h, w, rows, columns = PLACES[keep]
    if method == SMALL:
        features = small_features(model, inputs, (h, w))
    else:
        pixels = full_features(model, inputs).reshape(-1, 6, 6, 48).permute(0, 3, 1, 2)
        features = avg_pool2d(pixels, (6 // h, 6 // w)).flatten(2).transpose(1, 2)
    return features, [row * 6 + column for row in rows for column in columns]


def close(pruned, model, full, stays, atol=1e-4):
    ours = model(**pruned).logits[pruned["attention_mask"].bool()]
    return torch.allclose(ours, model(**full).logits[stays], atol=atol)


# Blocks.


@given(grids())
@settings(max_examples=300, deadline=None)
def test_every_token_is_in_exactly_one_of_k_blocks(case):
    (height, width), k = case
    cut = blocks((height, width), k)
    times = torch.zeros(height, width, dtype=torch.long)
    for block in cut:
        times[block.top : block.bottom, block.left : block.right] += 1
        assert block.top < block.bottom
        assert block.left < block.right
    assert len(cut) == k
    assert bool((times == 1).all())
    heights = {block.bottom - block.top for block in cut}
    assert max(heights) - min(heights) <= 1
    for top in {block.top for block in cut}:
        widths = [block.right - block.left for block in cut if block.top == top]
        assert max(widths) - min(widths) <= 1
    shares = [sum(block.top == top for block in cut) for top in {block.top for block in cut}]
    assert max(shares) - min(shares) <= 1


@given(grids())
@settings(max_examples=300, deadline=None)
def test_places_are_distinct_ascending_and_in_their_blocks(case):
    grid, k = case
    order = POOL.rank(image(grid), k).tolist()
    assert order == sorted(set(order))
    for place, block in zip(order, blocks(grid, k), strict=True):
        row, column = divmod(place, grid[1])
        assert abs(row - (block.top + block.bottom - 1) / 2) <= 0.5
        assert abs(column - (block.left + block.right - 1) / 2) <= 0.5


@pytest.mark.parametrize(
    ("k", "size"),
    [(576, (24, 24)), (192, (12, 16)), (128, (8, 16)), (64, (8, 8)), (32, (4, 8)), (16, (4, 4)), (1, (1, 1))],
)
def test_the_usual_budgets_of_576_are_lattices(k, size):
    assert lattice((24, 24), k) == size
    cut = blocks((24, 24), k)
    tops, lefts = sorted({block.top for block in cut}), sorted({block.left for block in cut})
    assert (len(tops), len(lefts)) == size
    assert [(block.top, block.left) for block in cut] == [(top, left) for top in tops for left in lefts]
    assert SMALL.rank(image((24, 24)), k).tolist() == POOL.rank(image((24, 24)), k).tolist()


@given(grids())
@settings(max_examples=200, deadline=None)
def test_a_lattice_fits_and_is_the_lattice_of_its_own_count(case):
    (height, width), k = case
    h, w = lattice((height, width), k)
    assert h <= height
    assert w <= width
    assert h * w <= k
    assert lattice((height, width), h * w) == (h, w)
    if height == width:  # nearly the grid's shape, and not much smaller than asked for
        assert max(h, w) <= 2 * min(h, w)
        assert h * w > k / 2
    if k == height * width:
        assert (h, w) == (height, width)


# Features.


@given(grids(), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_pooled_features_equal_a_loop(case, seed):
    grid, k = case
    tokens = image(grid, seed=seed, dtype=torch.float64)
    pooled = POOL.merge(tokens, k)
    for block, feature in zip(blocks(grid, k), pooled, strict=True):
        members = [
            tokens.features[row * grid[1] + column]
            for row in range(block.top, block.bottom)
            for column in range(block.left, block.right)
        ]
        assert torch.allclose(feature, sum(members) / len(members), atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_pooling_keeps_the_dtype_and_sums_in_a_wide_one(dtype):
    tokens = image((24, 24), dtype=dtype)
    pooled = POOL.merge(tokens, 64)
    assert pooled.dtype == dtype
    exact = avg_pool2d(tokens.features.double().T.reshape(1, 8, 24, 24), 3).reshape(8, 64).T
    assert (pooled.double() - exact).abs().max() <= 2 * torch.finfo(dtype).eps
    assert torch.equal(POOL.merge(tokens, 576), tokens.features)


@pytest.mark.parametrize("keep", PLACES)
@pytest.mark.parametrize("method", [POOL, SMALL], ids=repr)
@pytest.mark.parametrize("prompt", PROMPTS)
@torch.no_grad()
def test_logits_equal_embeddings_replaced_by_hand(tiny, prompt, method, keep):
    inputs = tiny_prompt(**PROMPTS[prompt])
    features, places = by_hand(tiny, inputs, method, keep)
    for positions in ("original", "compact"):
        pruned = foveate.prune(tiny, inputs, method, keep=keep, positions=positions)
        assert [kept.tolist() for kept in pruned.kept] == [places] * len(features)
        assert close(pruned, tiny, *replaced(tiny, inputs, features, places, positions))


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}], ids=str)
@pytest.mark.parametrize("method", [POOL, SMALL], ids=repr)
@torch.no_grad()
def test_generation_equals_embeddings_replaced_by_hand(tiny, method, options):
    inputs = tiny_prompt((1, 2))
    full, _ = replaced(tiny, inputs, *by_hand(tiny, inputs, method, 9))
    expected = tiny.generate(**full, max_new_tokens=10, **options)
    pruned = foveate.prune(tiny, inputs, method, keep=9)
    ours = tiny.generate(**pruned, max_new_tokens=10, **options)[:, pruned["input_ids"].shape[1] :]
    assert ours.tolist() == expected[:, -10:].tolist()
    with foveate.attach(tiny, method, keep=9):
        attached = tiny.generate(**inputs, max_new_tokens=10, **options)[:, inputs["input_ids"].shape[1] :]
    assert attached.tolist() == ours.tolist()


@pytest.mark.parametrize("method", [POOL, SMALL], ids=repr)
@torch.no_grad()
def test_all_tokens_are_exactly_all_tokens(tiny, method):
    inputs = tiny_prompt((1, 2))
    pruned = foveate.prune(tiny, inputs, method, keep=36)
    every = foveate.prune(tiny, inputs, foveate.RRQR(), keep=36)
    assert torch.equal(tiny(**pruned).logits, tiny(**every).logits)
    assert torch.allclose(
        tiny(**pruned).logits[pruned["attention_mask"].bool()],
        tiny(**inputs).logits[inputs["attention_mask"].bool()],
        atol=1e-4,
    )
    assert pruned.report.residual_energy == pytest.approx([0, 0, 0], abs=1e-20)


@pytest.mark.parametrize("layer", [-2, -1, 1])
@torch.no_grad()
def test_a_smaller_image_is_read_at_the_same_layer(layer):
    model = tiny_llava(vision_feature_layer=layer)
    inputs = tiny_prompt((1, 1))
    pruned = foveate.prune(model, inputs, SMALL, keep=8)  # 2 x 4: height and width must not be swapped
    ours = pruned["mm_encoder_outputs"]["image"].pooler_output
    assert torch.allclose(torch.stack(ours), small_features(model, inputs, (2, 4), layer), atol=1e-5)


@torch.no_grad()
def test_a_handed_on_cls_row_is_that_of_the_image_encoded():
    model = tiny_llava(vision_feature_select_strategy="full")
    inputs = tiny_prompt((1,), tokens=37)
    pixels = interpolate(inputs["pixel_values"], (12, 12), mode="bicubic", antialias=True)
    tower = model.model.vision_tower(pixels, interpolate_pos_encoding=True, output_hidden_states=True)
    small = foveate.prune(model, inputs, SMALL, keep=10)
    ours = small["mm_encoder_outputs"]["image"].pooler_output[0]
    assert torch.allclose(ours, model.model.multi_modal_projector(tower.hidden_states[-2])[0], atol=1e-5)
    pooled = foveate.prune(model, inputs, POOL, keep=10)
    assert (
        pooled.kept[0].tolist()
        == small.kept[0].tolist()
        == [0] + [1 + r * 6 + c for r in (0, 2, 4) for c in (0, 2, 4)]
    )
    every = model.model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output[0]
    ours = pooled["mm_encoder_outputs"]["image"].pooler_output[0]
    assert torch.equal(ours[0], every[0])
    assert torch.allclose(ours[1], every[[1, 2, 7, 8]].mean(0), atol=1e-6)
    assert foveate.prune(model, inputs, SMALL, keep=1).kept[0].tolist() == [0]


@pytest.mark.parametrize("method", [POOL, SMALL], ids=repr)
@torch.no_grad()
def test_an_image_at_the_very_end_has_a_token_in_its_last_place(tiny, method):
    inputs = tiny_prompt((1,), text=(7, 0))
    features, places = by_hand(tiny, inputs, method, 9)
    places[-1] = 35
    pruned = foveate.prune(tiny, inputs, method, keep=9)
    assert pruned.kept[0].tolist() == places
    assert close(pruned, tiny, *replaced(tiny, inputs, features, places))


@pytest.mark.parametrize(("keep", "reached"), [(7, 6), (35, 30), (11, 9), (3, 2), (1, 1)])
def test_counts_that_are_no_area_are_reached_from_below(tiny, keep, reached):
    inputs = tiny_prompt((1, 2))
    near = [(h, w) for h in range(1, 7) for w in range(1, 7) if max(h, w) <= 2 * min(h, w)]
    assert reached == max(h * w for h, w in near if h * w <= keep)
    pruned = foveate.prune(tiny, inputs, SMALL, keep=keep)
    assert pruned.report.tokens_after == [reached] * 3
    assert tiny(**pruned).logits.shape[1] == pruned["input_ids"].shape[1]
    assert foveate.prune(tiny, inputs, POOL, keep=keep).report.tokens_after == [keep] * 3


@pytest.mark.parametrize("method", [POOL, SMALL], ids=repr)
@torch.no_grad()
def test_several_images_in_a_padded_batch_are_as_alone(bundled, method):
    model, processor = bundled
    pictures = [noise(seed) for seed in range(3)]
    texts = ["USER: <image>\nIs there a circle? ASSISTANT:", "USER: <image><image>\nHow many? ASSISTANT:"]
    batch = processor(images=pictures, text=texts, padding=True, return_tensors="pt")
    alone = processor(images=pictures[:1], text=texts[:1], return_tensors="pt")
    both = foveate.prune(model, batch, method, keep=192)
    first = foveate.prune(model, alone, method, keep=192)
    assert both.report.tokens_after == [192] * 3
    ours = model(**both).logits[0][both["attention_mask"][0].bool()]
    assert torch.allclose(ours, model(**first).logits[0][first["attention_mask"][0].bool()], atol=1e-3)


@pytest.mark.parametrize("method", [POOL, SMALL], ids=repr)
def test_half_precision(method):
    model = tiny_llava().to(torch.bfloat16)
    pruned = foveate.prune(model, tiny_prompt((1, 2)), method, keep=9)
    assert pruned["mm_encoder_outputs"]["image"].pooler_output[0].dtype == torch.bfloat16
    assert model.generate(**pruned, max_new_tokens=3).shape == (2, pruned["input_ids"].shape[1] + 3)


@pytest.mark.parametrize("method", [POOL, SMALL], ids=repr)
def test_gradients_reach_the_vision_tower_through_a_forward(tiny, method):
    weight = tiny.model.vision_tower.embeddings.patch_embedding.weight
    with foveate.attach(tiny, method, keep=9):
        tiny(**tiny_prompt()).logits.sum().backward()
    assert weight.grad.abs().sum() > 0
    tiny.zero_grad()
    assert (
        not foveate.prune(tiny, tiny_prompt(), method, keep=9)["mm_encoder_outputs"]["image"]
        .pooler_output[0]
        .requires_grad
    )


def test_a_smaller_image_is_encoded_once_for_all_images_of_a_batch(tiny):
    seen = []
    hook = tiny.model.vision_tower.register_forward_hook(lambda _m, args, _o: seen.append(tuple(args[0].shape)))
    prepared = prepare(tiny, tiny_prompt((1, 2)), [POOL, SMALL])
    prepared.keep(POOL, 9)
    prepared.keep(SMALL, 8)
    hook.remove()
    assert seen == [(3, 3, 24, 24), (3, 3, 8, 16)]


# Energy.


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 20), st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_energy_outside_a_span_is_that_of_least_squares(n, k, d, seed):
    generator = torch.Generator().manual_seed(seed)
    features, rows = (torch.randn(m, d, generator=generator, dtype=torch.float64) for m in (n, k))
    solution = torch.linalg.lstsq(rows.T, features.T, driver="gelsd").solution
    expected = (features.T - rows.T @ solution).square().sum() / features.square().sum()
    assert float(energy_outside(features, rows)) == pytest.approx(float(expected), abs=1e-10)
    scales = torch.logspace(-9, 9, k, dtype=torch.float64)[:, None]
    assert float(energy_outside(features * 1e-200, rows * scales)) == pytest.approx(float(expected), abs=1e-10)


def test_energy_outside_rows_of_the_features_is_the_engines():
    features = image((6, 6), d=50).features
    order = foveate.select.select_residual(features, 9)
    assert float(energy_outside(features, features[order])) == pytest.approx(
        float(residual_energy(features, order)[-1]), rel=1e-9
    )
    twice = features[[3, 3, 5]]
    assert float(energy_outside(features, twice)) == pytest.approx(
        float(residual_energy(features, torch.tensor([3, 5]))[-1]), rel=1e-9
    )


def test_energy_at_the_edges():
    features = image((6, 6), d=5).features
    assert float(energy_outside(features, features)) == pytest.approx(0, abs=1e-20)
    assert float(energy_outside(features, features[:0])) == 1
    assert float(energy_outside(features, torch.zeros(3, 5))) == 1
    assert float(energy_outside(torch.zeros(4, 5), features)) == 0
    for bad in (torch.zeros(3, 4), torch.full((1, 5), float("nan")), torch.zeros(5)):
        with pytest.raises(foveate.InvalidFeatures, match="allowed"):
            energy_outside(features, bad)


@torch.no_grad()
def test_the_reported_energy_is_outside_what_the_model_is_given(tiny):
    inputs = tiny_prompt()
    every = full_features(tiny, inputs)[0].double()
    for method in (POOL, SMALL):
        given = by_hand(tiny, inputs, method, 9)[0][0].double()
        left = every - every @ torch.linalg.pinv(given) @ given
        expected = float(left.square().sum() / every.square().sum())
        pruned = foveate.prune(tiny, inputs, method, keep=9)
        assert pruned.report.residual_energy == pytest.approx([expected], rel=1e-4)
        assert expected > float(foveate.select.optimal_energy(every, 9)[-1])


# Refusals, and controls that must fail.


def test_pixels_that_are_not_understood_are_refused_before_any_work(tiny, monkeypatch):
    monkeypatch.setattr(Llava, "resizes", None)
    monkeypatch.setattr(tiny.model.vision_tower, "forward", None)  # any work would fail
    for attempt in (
        lambda: foveate.prune(tiny, tiny_prompt(), SMALL, keep=9),
        lambda: prepare(tiny, tiny_prompt(), [POOL, SMALL]),
        lambda: foveate.attach(tiny, SMALL, keep=9).__enter__(),
    ):
        with pytest.raises(foveate.UnsupportedModel, match=r"DownsampledImage on LLaVA-1\.5"):
            attempt()
    monkeypatch.undo()
    assert foveate.prune(tiny, tiny_prompt(), POOL, keep=9).report.tokens_after == [9]


@torch.no_grad()
def test_control_own_tokens_other_places_and_other_resizing_differ(tiny):
    inputs = tiny_prompt((1, 2))
    pooled, places = by_hand(tiny, inputs, POOL, 9)
    pruned = foveate.prune(tiny, inputs, POOL, keep=9)
    assert close(pruned, tiny, *replaced(tiny, inputs, pooled, places))
    own = full_features(tiny, inputs)[:, places]
    assert not close(pruned, tiny, *replaced(tiny, inputs, own, places), atol=0.1)
    assert not close(pruned, tiny, *replaced(tiny, inputs, pooled, [place + 1 for place in places]), atol=0.1)
    small = foveate.prune(tiny, inputs, SMALL, keep=9)
    rough = small_features(tiny, inputs, (3, 3), antialias=False)
    assert not close(small, tiny, *replaced(tiny, inputs, rough, places), atol=0.1)
    assert not close(small, tiny, *replaced(tiny, inputs, pooled, places), atol=0.1)
