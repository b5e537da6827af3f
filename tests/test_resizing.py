"""The down-sampled image in every family: pixels to pictures and back, and what is encoded of them.

The oracles are the families' stock image processors (without their own resizing), the stock encoders on pixels
that are taken apart, resized and put together by loops here, and the stock model on those features by hand.
"""

import inspect
import math
from itertools import accumulate, product

import pytest
import torch
from torch.nn.functional import interpolate

import foveate
from conftest import PROMPTS
from foveate.families import AS_IT_IS, DOWN_AND_UP, FAMILIES, IMAGE, PIXELS, VIDEO
from foveate.methods.controls.blocks import anchors, divided, lattice
from processors import KITS
from test_families import NAMES, masked, model_of, type_of, visual
from test_processors import processor_of, written
from zoo import MIXED, ZOO
from zoo.animal import PATCH

SMALL = foveate.DownsampledImage()
NATIVE = ("llava", "llava_pixtral", "mistral3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "gemma4")
QWEN = [name for name in NAMES if name.startswith(("qwen", "glm"))]
FLATTENING = [name for name in KITS if name.startswith(("qwen", "glm", "gemma4"))]
# LLaVA-NeXT's and OneVision's tiles in the zoo, in the order of pictures: rows and columns.
TILINGS = ((1, 3), (2, 1), (1, 2))
ROWS = (2, 1)  # images in the rows of a batch
BICUBIC = {"mode": "bicubic", "antialias": True}


def kind_of(name):
    return VIDEO if name.endswith("video") else IMAGE


def family_of(name):
    return FAMILIES[type_of(name)]


def is_native(name):
    return name.removesuffix("_video") in NATIVE


def drawn(name, inputs):
    return family_of(name).pictures(model_of(name), inputs, kind_of(name))


def encoded(name, arguments):
    """The stock encoder's tokens, all one after another."""
    model = model_of(name)
    encoder = getattr(model.base_model, f"get_{kind_of(name)}_features")
    known = [*inspect.signature(encoder).parameters, "interpolate_pos_encoding"]
    with torch.no_grad():
        output = encoder(**{key: value for key, value in arguments.items() if key in known})
    return torch.cat([entry.reshape(-1, entry.shape[-1]) for entry in output.pooler_output]), output


def planned(grids, count):
    """By hand: the sizes of an image's grids, by their number, and its places, for so many tokens."""
    starts = list(accumulate((h * w for h, w in grids), initial=0))
    sizes = {starts.index(start): lattice(grid, share) for start, grid, share in divided(grids, count)}
    places = [starts[number] + anchors([grids[number]], math.prod(size)) for number, size in sizes.items()]
    return sizes, torch.cat(places)


# From pixels to pictures and back.


@pytest.mark.parametrize("prompt", ["one image", "batch of three with a text-only row"])
@pytest.mark.parametrize("name", NAMES)
def test_pictures_and_back_are_the_same_to_the_encoder(name, prompt):
    assert_same_and_back(name, ZOO[name].prompt(**PROMPTS[prompt]))


@pytest.mark.parametrize("kit", KITS)
def test_pictures_of_the_stock_processors_and_back(kit):
    name, inputs = KITS[kit].animal, written(kit, (2, 0, 1))
    assert_same_and_back(name, inputs)
    pruned = foveate.prune(model_of(name), inputs, SMALL, keep=0.5)
    with torch.no_grad():
        assert model_of(name)(**pruned).logits.isfinite().all()


def assert_same_and_back(name, inputs):
    pictures = drawn(name, inputs)
    pruned = foveate.prune(model_of(name), inputs, foveate.Random(), keep=1.0)
    assert len(pictures) == sum(len(grids) for grids in pruned.grids)
    family, model, kind = family_of(name), model_of(name), kind_of(name)
    expected, _ = encoded(name, inputs)
    own = [height * width for grids in pruned.grids for height, width in grids]
    if family.resizes == DOWN_AND_UP:
        again, _ = encoded(name, {**inputs, **family.with_pictures(model, inputs, kind, pictures)})
    else:  # one by one: they differ in size
        given = [family.with_pictures(model, inputs, kind, [picture]) for picture in pictures]
        parts = [encoded(name, one)[0][:n] for one, n in zip(given, own, strict=True)]
        again = torch.cat(parts)
        for picture in pictures:
            back = family.pictures(model, family.with_pictures(model, inputs, kind, [picture]), kind)
            assert torch.equal(back[0], picture)
    assert torch.allclose(again, expected, atol=1e-5)


@pytest.mark.parametrize("name", QWEN)
def test_flattening_again_gives_the_very_rows(name):
    inputs = ZOO[name].prompt((2, 1))
    pictures, model, kind = drawn(name, inputs), model_of(name), kind_of(name)
    rows = [family_of(name).with_pictures(model, inputs, kind, [picture])[PIXELS[kind]] for picture in pictures]
    assert torch.equal(torch.cat(rows), inputs[PIXELS[kind]])


@pytest.mark.parametrize("size", [(48, 32), (16, 24), (8, 8)])
@pytest.mark.parametrize("name", FLATTENING)
def test_flattening_is_that_of_the_stock_processor(name, size):
    picture = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    processor = processor_of(name).image_processor
    stock = processor(
        images=[picture.numpy()],
        do_resize=False,
        do_rescale=False,
        do_normalize=False,
        do_convert_rgb=False,
        input_data_format="channels_first",
        return_tensors="pt",
    )
    frames = 1 if name == "gemma4" else 2  # one picture fills both frames of a time step
    ours = family_of(KITS[name].animal).with_pictures(
        model_of(KITS[name].animal), {}, IMAGE, [picture.repeat_interleave(frames, dim=0)]
    )
    for key, value in ours.items():
        expected = stock[key][:, : value.shape[1]] if name == "gemma4" else stock[key]
        assert torch.equal(value, expected), key


# What is encoded.


def unflattened(rows, grid):
    """``[time, 3, 2, H, W]``, patch by patch: Qwen-VL's."""
    time, height, width = grid
    picture = torch.zeros(time, 3, 2, height * PATCH, width * PATCH)
    for number, (t, y, x, down, across) in enumerate(product(*map(range, (time, height // 2, width // 2, 2, 2)))):
        top, left = (2 * y + down) * PATCH, (2 * x + across) * PATCH
        picture[t, :, :, top : top + PATCH, left : left + PATCH] = rows[number].reshape(3, 2, PATCH, PATCH)
    return picture


def flattened(picture):
    """The rows of ``[3, 2, H, W]``."""
    height, width = (edge // PATCH for edge in picture.shape[-2:])
    rows = []
    for y, x, down, across in product(*map(range, (height // 2, width // 2, 2, 2))):
        top, left = (2 * y + down) * PATCH, (2 * x + across) * PATCH
        rows.append(picture[:, :, top : top + PATCH, left : left + PATCH].flatten())
    return torch.stack(rows), [1, height, width]


def small_by_hand(name, inputs, plans, **options):
    """Tokens of each image from the stock encoder on smaller pictures, which it is given one by one."""
    kind, found = kind_of(name), []
    if name in QWEN:
        grids = inputs[f"{kind}_grid_thw"]
        images = inputs[PIXELS[kind]].split(grids.prod(dim=1).tolist())
        for rows, grid, sizes in zip(images, grids.tolist(), plans, strict=True):
            steps = unflattened(rows, grid)
            tokens = []
            for step, (h, w) in sizes.items():
                small = interpolate(steps[step], (h * 2 * PATCH, w * 2 * PATCH), **{**BICUBIC, **options})
                pixels, thw = flattened(small)
                tokens.append(encoded(name, {PIXELS[kind]: pixels, f"{kind}_grid_thw": torch.tensor([thw])})[0])
            found.append(torch.cat(tokens))
        return found
    side = PATCH * (2 if name in ("mistral3", "gemma4") else 1)
    for index, sizes in enumerate(plans):
        ((h, w),) = sizes.values()
        pixels = inputs["pixel_values"][index]
        if "image_sizes" in inputs:
            height, width = inputs["image_sizes"][index].tolist()
            pixels = pixels[:, :height, :width]
        if name == "gemma4":
            places = inputs["image_position_ids"][index]
            real = places[:, 0] >= 0
            across, down = ((places[real].amax(0) + 1) * PATCH).tolist()
            picture = torch.zeros(3, down, across)
            for row, (x, y) in zip(pixels[real], places[real].tolist(), strict=True):
                patch = row.reshape(PATCH, PATCH, 3).permute(2, 0, 1)
                picture[:, y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH] = patch
            pixels = picture
        small = interpolate(pixels[None], (h * side, w * side), **{**BICUBIC, **options})
        arguments = {"pixel_values": small}
        if name == "gemma4":
            corners = [(y, x) for y in range(2 * h) for x in range(2 * w)]
            rows = [
                small[0, :, y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH].permute(1, 2, 0).flatten()
                for y, x in corners
            ]
            swapped = torch.tensor([[(x, y) for y, x in corners]])
            arguments = {"pixel_values": torch.stack(rows)[None], "image_position_ids": swapped}
        elif name == "llava":
            arguments["interpolate_pos_encoding"] = True
        else:
            arguments["image_sizes"] = torch.tensor([small.shape[2:]])
        found.append(encoded(name, arguments)[0])
    return found


def blurred_by_hand(name, inputs, plans, grids, **options):
    """All tokens of each image, from the stock encoder on pixels resized down and up again, in place."""
    key = PIXELS[kind_of(name)]
    pixels = inputs[key].clone()

    def blur(picture, grid, size):
        edges = [edge * part // of for edge, part, of in zip(picture.shape[-2:], size, grid, strict=True)]
        down = interpolate(picture[None], edges, **{**BICUBIC, **options})
        return interpolate(down, picture.shape[-2:], **BICUBIC)[0]

    if pixels.dim() == 5 and key == "pixel_values" and name.startswith("llava"):
        for index, sizes in enumerate(plans):
            for number, size in sizes.items():
                grid = grids[index][number]
                if number == 0:
                    pixels[index, 0] = blur(pixels[index, 0], grid, size)
                    continue
                rows, columns = TILINGS[index % 3]
                side = pixels.shape[-1]
                canvas = torch.zeros(3, rows * side, columns * side)
                for tile, (y, x) in enumerate(product(range(rows), range(columns))):
                    canvas[:, y * side : (y + 1) * side, x * side : (x + 1) * side] = pixels[index, 1 + tile]
                canvas = blur(canvas, grid, size)
                for tile, (y, x) in enumerate(product(range(rows), range(columns))):
                    pixels[index, 1 + tile] = canvas[:, y * side : (y + 1) * side, x * side : (x + 1) * side]
    else:
        tiles = [tile for tile in pixels.flatten(0, -4) if bool(tile.any())]  # views; Idefics3 pads with zeros
        drawn_as = zip(grids, plans, strict=True)
        every = [(grid, sizes.get(number)) for own, sizes in drawn_as for number, grid in enumerate(own)]
        for tile, (grid, size) in zip(tiles, every, strict=True):
            if size is not None:
                tile.copy_(blur(tile, grid, size))
    return encoded(name, {**inputs, key: pixels})[0].split(ZOO[name].tokens(ROWS))


def by_hand(name, inputs, pruned, keep, **options):
    """Per image: indices of its tokens (locked rows included), and what stands there."""
    locked = [own.nonzero().flatten() for own in pruned.locked]
    cases = list(zip(pruned.grids, pruned.report.tokens_before, locked, strict=True))
    plans, kept = [], []
    for own, n, rows in cases:
        sizes, places = planned(own, min(keep, n) - len(rows))
        free = torch.tensor([place for place in range(n) if place not in rows.tolist()])
        plans.append(sizes)
        kept.append(torch.cat([rows, free[places]]).sort().values)
    if is_native(name):
        return kept, small_by_hand(name, inputs, plans, **options)
    whole = blurred_by_hand(name, inputs, plans, pruned.grids, **options)
    return kept, [features[own] for features, own in zip(whole, kept, strict=True)]


def given(pruned, name):
    """What the language model is given for each image."""
    rows = torch.cat(list(pruned["mm_encoder_outputs"][kind_of(name)].pooler_output))
    return rows.split(pruned.report.tokens_after)


@pytest.mark.parametrize("keep", [7, 9])
@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_the_stock_encoders_of_smaller_pictures(name, keep):
    inputs = ZOO[name].prompt(ROWS)
    pruned = foveate.prune(model_of(name), inputs, SMALL, keep=keep)
    kept, features = by_hand(name, inputs, pruned, keep)
    assert pruned.report.resized == (AS_IT_IS if is_native(name) else DOWN_AND_UP)
    assert [own.tolist() for own in pruned.kept] == [own.tolist() for own in kept]
    assert pruned.report.tokens_after == [len(own) for own in kept]
    assert all(after <= keep for after in pruned.report.tokens_after)
    for ours, expected in zip(given(pruned, name), features, strict=True):
        assert torch.allclose(ours, expected, atol=1e-4)
    rough = by_hand(name, inputs, pruned, keep, antialias=False)[1]  # must differ, or nothing is proven
    assert max(float((a - b).abs().max()) for a, b in zip(given(pruned, name), rough, strict=True)) > 1e-2


def replaced(name, inputs, pruned, kept, features):
    """The full prompt as embeddings, with ``features`` at the tokens ``kept``, and all others masked."""
    model = model_of(name)
    full, stays = masked(name, inputs, pruned)
    embeddings = model.get_input_embeddings()(inputs["input_ids"]).clone()
    places = visual(name, inputs).nonzero().split(pruned.report.tokens_before)
    for columns, own, tokens in zip(places, kept, features, strict=True):
        row, column = columns[own].T
        embeddings[row, column] = tokens
    drop = ("input_ids", "labels", *PIXELS.values())
    text = {key: value for key, value in full.items() if key not in drop}
    return {**text, "inputs_embeds": embeddings}, stays


def difference(name, pruned, full, stays):
    with torch.no_grad():
        expected = model_of(name)(**full).logits[stays]
        ours = model_of(name)(**pruned).logits[pruned["attention_mask"].bool()]
    return float((ours - expected).abs().max())


# Gemma 4's language model reads the ids, too, and Qwen3-VL's gets more than embeddings.
@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(("gemma4", "qwen3"))])
def test_the_pruned_prompt_is_the_full_one_with_embeddings_replaced(name):
    inputs = ZOO[name].prompt(ROWS)
    pruned = foveate.prune(model_of(name), inputs, SMALL, keep=7)
    kept, features = by_hand(name, inputs, pruned, 7)
    assert difference(name, pruned, *replaced(name, inputs, pruned, kept, features)) < 1e-4
    turned = [tokens.roll(1, dims=0) for tokens in features]  # other places
    assert difference(name, pruned, *replaced(name, inputs, pruned, kept, turned)) > 1e-2


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_vl_video"])
def test_what_the_first_layers_add_is_of_the_smaller_image_too(name):
    inputs = ZOO[name].prompt((1,))
    pruned = foveate.prune(model_of(name), inputs, SMALL, keep=4)
    kind = kind_of(name)
    sizes, _ = planned(pruned.grids[0], 4)
    steps = unflattened(inputs[PIXELS[kind]], inputs[f"{kind}_grid_thw"][0].tolist())
    layers = []
    for step, (h, w) in sizes.items():
        pixels, thw = flattened(interpolate(steps[step], (h * 2 * PATCH, w * 2 * PATCH), **BICUBIC))
        output = encoded(name, {PIXELS[kind]: pixels, f"{kind}_grid_thw": torch.tensor([thw])})[1]
        layers.append([torch.cat(list(layer)) for layer in output.deepstack_features])
    ours = pruned["mm_encoder_outputs"][kind].deepstack_features
    for number, layer in enumerate(ours):
        assert torch.allclose(torch.cat(list(layer)), torch.cat([step[number] for step in layers]), atol=1e-4)


@pytest.mark.parametrize("name", [name for name in QWEN if name.endswith("video")])
@torch.no_grad()
def test_time_steps_one_by_one_are_a_video(name):
    """Frames that get equal shares give what the stock encoder makes of the whole small video."""
    inputs = ZOO[name].prompt((1,))
    time = int(inputs["video_grid_thw"][0, 0])
    pruned = foveate.prune(model_of(name), inputs, SMALL, keep=4 * time)
    sizes, _ = planned(pruned.grids[0], 4 * time)
    ((h, w),) = set(sizes.values())
    steps = unflattened(inputs["pixel_values_videos"], inputs["video_grid_thw"][0].tolist())
    small = [flattened(interpolate(step, (h * 2 * PATCH, w * 2 * PATCH), **BICUBIC))[0] for step in steps]
    grid = torch.tensor([[time, 2 * h, 2 * w]])
    whole, _ = encoded(name, {"pixel_values_videos": torch.cat(small), "video_grid_thw": grid})
    assert torch.allclose(given(pruned, name)[0], whole, atol=1e-4)


# Budgets.


@pytest.mark.parametrize("name", NAMES)
def test_every_budget_is_reached_from_below_and_runs(name):
    inputs = ZOO[name].prompt((1,))
    least = int(foveate.prune(model_of(name), inputs, SMALL, keep=1.0).locked[0].sum())
    for keep in (least + 1, 0.3, 0.5, 0.8, 1.0):
        pruned = foveate.prune(model_of(name), inputs, SMALL, keep=keep)
        before, (after,) = pruned.report.tokens_before[0], pruned.report.tokens_after
        asked = keep if isinstance(keep, int) else max(1, int(before * keep + 0.5))
        parts = divided(pruned.grids[0], asked - least)
        assert after == least + sum(math.prod(lattice(grid, share)) for _, grid, share in parts)
    assert after == before
    output = model_of(name).generate(**pruned, max_new_tokens=2)
    assert output.shape[1] == pruned["input_ids"].shape[1] + 2


@pytest.mark.parametrize("name", [name for name in NAMES if not ZOO[name].pictures_first])
def test_an_image_at_the_very_end_has_a_token_in_its_last_place(name):
    inputs = ZOO[name].prompt((1,))
    flags = visual(name, inputs)
    end = int(flags[0].nonzero()[-1]) + 1
    cut = {key: value[:, :end] if value.shape == flags.shape else value for key, value in inputs.items()}
    for keep in (0.4, 0.5, 0.6):
        pruned = foveate.prune(model_of(name), cut, SMALL, keep=keep)
        assert int(pruned.kept[0][-1]) == pruned.report.tokens_before[0] - 1
        assert len(given(pruned, name)[0]) == pruned.report.tokens_after[0] < pruned.report.tokens_before[0]


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("video")])
def test_frames_by_themselves_have_the_shares_of_all_together(name):
    inputs = ZOO[name].prompt((1,))
    together = foveate.prune(model_of(name), inputs, SMALL, keep=7)
    alone = foveate.prune(model_of(name), inputs, SMALL, keep=7, per_frame=True)
    assert together.kept[0].tolist() == alone.kept[0].tolist()
    assert torch.allclose(given(together, name)[0], given(alone, name)[0], atol=1e-5)


def test_images_and_videos_in_one_prompt_are_as_alone():
    for name, mixed in MIXED.items():
        model, inputs = mixed.image.build(), mixed.prompt(("iv",))
        pruned = foveate.prune(model, inputs, SMALL, keep=7)
        assert pruned.kinds == [IMAGE, VIDEO], name
        with torch.no_grad():
            assert model(**pruned).logits.isfinite().all()
        assert pruned.report.resized == FAMILIES[name].resizes


@pytest.mark.parametrize("name", ["llava_pixtral", "qwen2_5_vl", "llava_next", "idefics3", "gemma3"])
def test_half_precision_and_gradients(name):
    model = ZOO[name].build().to(torch.bfloat16)
    inputs = ZOO[name].prompt((1,))
    with foveate.attach(model, SMALL, keep=7):
        model(**inputs).logits.float().sum().backward()
    tower = getattr(model.base_model, "visual", None) or getattr(
        model.base_model, "vision_tower", getattr(model.base_model, "vision_model", None)
    )
    assert any(weight.grad is not None and bool(weight.grad.any()) for weight in tower.parameters())


# Refusals.


def test_a_family_whose_pixels_are_unknown_is_refused_before_any_work(monkeypatch):
    model, inputs = model_of("internvl"), ZOO["internvl"].prompt((1,))
    others = {name: family for name, family in FAMILIES.items() if name != "internvl"}
    monkeypatch.setattr("foveate.families.FAMILIES", others)  # a table put back by items is in another order
    monkeypatch.setattr(model.model.vision_tower, "forward", None)  # any work would fail
    with pytest.raises(foveate.UnsupportedModel, match=r"DownsampledImage on generic.*supported are llava, "):
        foveate.prune(model, inputs, SMALL, keep=7, family="generic")


def test_no_other_method_says_that_it_resized():
    inputs = ZOO["llava"].prompt((1,))
    for method in (foveate.AveragePool(), foveate.RRQR()):
        assert foveate.prune(model_of("llava"), inputs, method, keep=7).report.resized is None


@pytest.mark.parametrize("name", ["qwen2_vl", "llava_next"])
def test_values_that_are_not_finite_are_named(name, monkeypatch):
    def spoiled(picture, grid, size):
        return torch.full_like(picture, float("nan"))

    monkeypatch.setattr("foveate.resize._smaller", spoiled)
    with pytest.raises(foveate.InvalidFeatures, match="image 0"):
        foveate.prune(model_of(name), ZOO[name].prompt((1,)), SMALL, keep=5)
