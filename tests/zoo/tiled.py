"""InternVL, Idefics3 and SmolVLM: images cut into tiles of one size, each with as many tokens as a small image."""

import math
from functools import partial
from itertools import chain

import torch
import transformers as hf

from .animal import (
    END,
    FAKE,
    GLOBAL,
    IMAGE,
    LANGUAGE,
    NEWLINE,
    ROW_COLUMN,
    START,
    TOWER,
    Animal,
    Picture,
    born,
    concatenated,
    joined,
    noise,
    squares,
)

TILE = 24  # pixels: 6 x 6 patches


def internvl():
    return born(
        hf.InternVLForConditionalGeneration,
        vision_config={**TOWER, "image_size": TILE},
        text_config=hf.Qwen2Config(**LANGUAGE),
        image_token_id=IMAGE,
        image_seq_length=9,
    )


def idefics(kind, scale):
    """A token stands for ``scale`` x ``scale`` patches."""
    return born(
        kind,
        vision_config={**TOWER, "image_size": TILE},
        text_config=hf.LlamaConfig(**LANGUAGE),
        image_token_id=IMAGE,
        scale_factor=scale,
    )


def in_one_run(index, alone, generator):
    """InternVL: the tiles, then a thumbnail if they are several; no input tells where an image's tiles end."""
    number = (3, 1, 4)[index % 3]
    ids = [START, *[IMAGE] * 9 * number, END]
    return Picture(ids, {"pixel_values": noise(generator, number, 3, TILE, TILE)}, squares(number, TILE, 3))


def in_rows(count, index, alone, generator):
    """Idefics3: ``count`` tokens for each tile, after its place; then the whole image."""
    rows, columns = ((1, 2), (0, 0), (3, 1))[index % 3]
    ids = []
    for row in range(rows):
        for column in range(columns):
            ids += [FAKE, ROW_COLUMN + 6 * row + column, *[IMAGE] * count]
        ids.append(NEWLINE)
    ids += [NEWLINE] * (rows > 0) + [FAKE, GLOBAL, *[IMAGE] * count, FAKE]
    pixels = noise(generator, rows * columns + 1, 3, TILE, TILE)
    tensors = {"pixel_values": pixels, "pixel_attention_mask": torch.ones_like(pixels[:, 0]).long()}
    return Picture(ids, tensors, squares(len(pixels), TILE, math.isqrt(count)))


def joined_per_row(rows):
    """Idefics3: one entry per row of the batch, with all its tiles; zeros where it has fewer than others."""
    empty = {name: value[:0] for name, value in next(chain(*rows)).tensors.items()}
    entries = [joined([[*row, Picture([], empty)]]) for row in rows]
    return {name: concatenated([entry[name][None] for entry in entries]) for name in empty}


ANIMALS = {
    "internvl": Animal(internvl, in_one_run),
    "idefics3": Animal(
        partial(idefics, hf.Idefics3ForConditionalGeneration, 2), partial(in_rows, 9), joined_per_row
    ),
    "smolvlm": Animal(
        partial(idefics, hf.SmolVLMForConditionalGeneration, 3), partial(in_rows, 4), joined_per_row
    ),
}
