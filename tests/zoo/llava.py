"""LLaVA and its descendants, and what reads Pixtral's towers."""

import math
from functools import partial
from itertools import product
from types import SimpleNamespace

import torch
import transformers as hf
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from .animal import (
    BREAK,
    END,
    IMAGE,
    LANGUAGE,
    PATCH,
    TOWER,
    VIDEO,
    Animal,
    Mixed,
    Picture,
    born,
    noise,
    of_one_size,
    squares,
)

TILE, TILINGS = 12, [[1, 2], [2, 1], [1, 3]]
ASPECT = "anyres_max_2"  # OneVision shrinks what has more than two tiles' patches


def pinpoints(tile):
    return [[tile * down, tile * across] for down, across in TILINGS]


PINPOINTS = pinpoints(TILE)


def clip(size):
    return hf.CLIPVisionConfig(**TOWER, image_size=size, projection_dim=16)


def llava():
    return born(
        hf.LlavaForConditionalGeneration,
        vision_config=clip(24),
        text_config=hf.LlamaConfig(**LANGUAGE),
        image_token_id=IMAGE,
    )


def with_pixtral(kind, **options):
    return born(
        kind,
        vision_config=hf.PixtralVisionConfig(**TOWER, image_size=64),
        text_config=hf.MistralConfig(**LANGUAGE, sliding_window=None),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        **options,
    )


def llava_pixtral():
    return with_pixtral(hf.LlavaForConditionalGeneration, vision_feature_select_strategy="full")


def mistral3():
    return with_pixtral(hf.Mistral3ForConditionalGeneration, spatial_merge_size=2)


def llava_next():
    return born(
        hf.LlavaNextForConditionalGeneration,
        vision_config=clip(TILE),
        text_config=hf.LlamaConfig(**LANGUAGE),
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
    )


def llava_next_video(size):
    return born(
        hf.LlavaNextVideoForConditionalGeneration,
        vision_config=clip(size),
        text_config=hf.LlamaConfig(**LANGUAGE),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=pinpoints(size),
    )


def llava_onevision():
    return born(
        hf.LlavaOnevisionForConditionalGeneration,
        vision_config=hf.SiglipVisionConfig(**TOWER, image_size=TILE, vision_use_head=False),
        text_config=hf.Qwen2Config(**LANGUAGE),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio=ASPECT,
    )


def rows_of_patches(merge, index, alone, generator):
    """Pixtral: a row of tokens ends in [IMG_BREAK], the last one in [IMG_END]."""
    height, width = ((4, 6), (2, 10), (6, 3))[index % 3]
    ids = ([IMAGE] * width + [BREAK]) * height
    pixels = noise(generator, 1, 3, height * merge * PATCH, width * merge * PATCH)
    tensors = {"pixel_values": pixels, "image_sizes": torch.tensor([pixels.shape[2:]])}
    y, x = (torch.arange(size) // (merge * PATCH) for size in pixels.shape[2:])
    return Picture([*ids[:-1], END], tensors, (torch.tensor(0), y[:, None], x))


def counting(processor, tile):
    """What the processors' counting of tokens needs of a processor."""
    needed = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=pinpoints(tile)),
        num_additional_image_tokens=0,
        patch_size=PATCH,
        num_image_tokens=(tile // PATCH) ** 2,
        vision_aspect_ratio=ASPECT,
    )
    needed._get_unpadded_features = partial(processor._get_unpadded_features, needed)
    return needed


def tiles(processor, index, alone, generator, tile=TILE):
    """LLaVA-NeXT and OneVision: the whole image, then its tiles without margins, a newline after each row."""
    # OneVision shrinks the first, to rows and columns of tokens; the last has margins.
    size, tiling, shrunk = (((4, 12), (1, 3), (2, 7)), ((8, 4), (2, 1), None), ((3, 4), (1, 2), None))[index % 3]
    height, width = (edge * tile // 4 for edge in size)
    processing = counting(processor, tile)
    count = processor._get_number_of_features(processing, height, width, tile, tile)
    if processor is LlavaOnevisionProcessor and not alone:  # one tile and one newline
        count, tiling = processing.num_image_tokens + 1, (0, 0)
    pixels = noise(generator, 1, 1 + tiling[0] * tiling[1], 3, tile, tile)
    tensors = {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]])}
    if tiling == (0, 0):
        places = squares(1, tile, tile // PATCH)
    else:
        places = tiled(tile, (height, width), tiling, shrunk if processor is LlavaOnevisionProcessor else None)
    return Picture([IMAGE] * count, tensors, places)


def tiled(tile, size, tiling, shrunk):
    """Places in the whole image, then in its tiles: as many tokens as patches, or else ``shrunk``."""
    scale = min(tile * parts / edge for parts, edge in zip(tiling, size, strict=True))
    whole = torch.arange(tile) // PATCH
    lines = []
    for axis in range(2):
        canvas, filled = tile * tiling[axis], round(size[axis] * scale)
        place = torch.arange(canvas) - (canvas - filled) // 2
        number = shrunk[axis] if shrunk else filled // PATCH
        inside = (place >= 0) & (place < filled)
        lines.append(torch.where(inside, place * number // filled, -1).split(tile))
    y, x = zip((whole, whole), *product(*lines), strict=True)
    grids = torch.tensor([0] + [1] * (len(y) - 1))
    return grids[:, None, None, None], torch.stack(y)[:, None, :, None], torch.stack(x)[:, None, None, :]


def frames(size, count, index, alone, generator):
    """Three frames, all videos of one size: they are stacked."""
    pixels = noise(generator, 1, 3, 3, size, size)
    return Picture([VIDEO] * count, {"pixel_values_videos": pixels}, squares(3, size, math.isqrt(count // 3)))


def image_counts(ids, images_per_row):
    """OneVision: rows without images are left out."""
    return {"batch_num_images": torch.tensor([count for count in images_per_row if count])}


ANIMALS = {
    "llava": Animal(llava, partial(of_one_size, 24, 36, [], [])),
    "llava_pixtral": Animal(llava_pixtral, partial(rows_of_patches, 1)),
    "mistral3": Animal(mistral3, partial(rows_of_patches, 2)),
    "llava_next": Animal(llava_next, partial(tiles, LlavaNextProcessor)),
    "llava_onevision": Animal(llava_onevision, partial(tiles, LlavaOnevisionProcessor), mark=image_counts),
    "llava_onevision_video": Animal(llava_onevision, partial(frames, 12, 13), placeholders=(VIDEO,)),
    "llava_next_video": Animal(partial(llava_next_video, 16), partial(frames, 16, 12), placeholders=(VIDEO,)),
    "llava_next_video_image": Animal(partial(llava_next_video, TILE), partial(tiles, LlavaNextProcessor)),
}

# Images and videos in one prompt, in models of one size for both.
MIXED = {
    "llava_onevision": Mixed(ANIMALS["llava_onevision"], ANIMALS["llava_onevision_video"]),
    "llava_next_video": Mixed(
        Animal(partial(llava_next_video, 16), partial(tiles, LlavaNextProcessor, tile=16)),
        ANIMALS["llava_next_video"],
    ),
}
