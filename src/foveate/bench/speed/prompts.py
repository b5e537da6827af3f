"""Inputs written directly: pixels of noise, and ids of text around the image's place."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.bench.speed.stand_in import QUESTION_IDS, WORDS
from foveate.errors import InvalidOption

PATCH = 14  # pixels
TILINGS = {1752: (336, 672), 2928: (672, 672)}  # its tokens: of the whole image, of its tiles, of newlines


@dataclass(frozen=True)
class Picture:
    """An image's part of a prompt.

    Attributes:
        ids: its tokens, with what stands around them.
        tensors: the encoder's inputs, for one image.
    """

    ids: list[int]
    tensors: dict[str, Tensor]


Inputs = Callable[[Any, int, torch.Generator], Picture]


def square(config: Any, tokens: int, generator: torch.Generator) -> Picture:
    """An image of the tower's own size.

    Raises:
        InvalidOption: the tower makes another number of tokens of every image.
    """
    edge = config.vision_config.image_size
    own = (edge // config.vision_config.patch_size) ** 2
    if tokens != own:
        raise InvalidOption(f"size {tokens}: this tower makes {own} tokens of every image; allowed is {own}")
    return Picture([config.image_token_id] * own, {"pixel_values": _noise(generator, 1, 3, edge, edge)})


def tiles(config: Any, tokens: int, generator: torch.Generator) -> Picture:
    """LLaVA-NeXT: the whole image, then its tiles, a newline after each row.

    Raises:
        InvalidOption: no tiling has so many.
    """
    if tokens not in TILINGS:
        raise InvalidOption(
            f"size {tokens}: allowed are {', '.join(map(str, TILINGS))}, by the tiles of the image"
        )
    height, width = TILINGS[tokens]
    edge = config.vision_config.image_size
    pixels = _noise(generator, 1, 1 + (height // edge) * (width // edge), 3, edge, edge)
    sizes = torch.tensor([[height, width]])
    return Picture([config.image_token_id] * tokens, {"pixel_values": pixels, "image_sizes": sizes})


def patches(config: Any, tokens: int, generator: torch.Generator) -> Picture:
    """Qwen2.5-VL: as square as so many tokens can be.

    Raises:
        InvalidOption: fewer than 4, or so long and narrow that no image would be.
    """
    height = next((edge for edge in range(math.isqrt(max(tokens, 0)), 1, -1) if tokens % edge == 0), 0)
    if not height or tokens > 4 * height * height:
        raise InvalidOption(f"size {tokens}: allowed are tokens in rows and columns, such as 64, 256, 576 or 1296")
    tower = config.vision_config
    grid = torch.tensor([[1, height * tower.spatial_merge_size, tokens // height * tower.spatial_merge_size]])
    width = 3 * tower.temporal_patch_size * tower.patch_size**2
    pixels = _noise(generator, int(grid.prod()), width)
    ids = [config.vision_start_token_id, *[config.image_token_id] * tokens, config.vision_end_token_id]
    return Picture(ids, {"pixel_values": pixels, "image_grid_thw": grid})


def written(config: Any, make: Inputs, tokens: int, text: int, batch: int, seed: int = 0) -> dict[str, Tensor]:
    """What a processor would return for ``batch`` rows of one image each, with ``text`` tokens of text around.

    The question's are the last ones.

    Raises:
        InvalidOption: visual tokens that the tower cannot make, or a text shorter than the question.
    """
    if text < len(QUESTION_IDS):
        raise InvalidOption(f"text {text}: the question alone has {len(QUESTION_IDS)} tokens; allowed is more")
    generator = torch.Generator().manual_seed(seed)
    pictures = [make(config, tokens, generator) for _ in range(batch)]
    around = torch.randint(WORDS.start, WORDS.stop, (text - len(QUESTION_IDS),), generator=generator).tolist()
    before, after = around[: len(around) // 2], around[len(around) // 2 :]
    ids = torch.tensor([[*before, *picture.ids, *after, *QUESTION_IDS] for picture in pictures])
    names = pictures[0].tensors
    tensors = {name: torch.cat([picture.tensors[name] for picture in pictures]) for name in names}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **tensors}
    if "image_grid_thw" in tensors:
        inputs["mm_token_type_ids"] = (ids == config.image_token_id).long()
    return inputs


def _noise(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)
