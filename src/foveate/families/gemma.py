"""Gemma 3, Gemma 4 and PaliGemma: image tokens see one another in both directions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from foveate.families.base import AS_IT_IS, IMAGE, Family, Inputs
from foveate.families.layout import Grid, Layout, blocks, square

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PaliGemma(Family):
    """``paligemma``: a square of patches. Source: transformers 5.18 to 5.24."""

    name = "PaliGemma"
    towers = ("siglip_vision_model",)
    drops_inside = False
    tokens = "a square of patches"


class Gemma3(PaliGemma):
    """``gemma3``: patches pooled to a smaller square; crops of pan-and-scan count as images of their own."""

    name = "Gemma 3"
    tokens = "a square of pooled patches; each crop of pan-and-scan counts as an image"

    def patches_of_tokens(
        self, model: "PreTrainedModel", prompt: Inputs, kind: str, lengths: Sequence[int]
    ) -> Tensor | None:
        """Squares of each image's patches."""
        n, size = lengths[0], square(model.config.mm_tokens_per_image)
        return torch.cat([blocks(square(n), size, image * n) for image in range(len(lengths))])


class Gemma4(Family):
    """``gemma4``: the image's own rows of patches, pooled. Source: transformers 5.18 to 5.24."""

    name = "Gemma 4"
    towers = ("gemma4_vision",)
    requires: ClassVar = {IMAGE: ("image_position_ids",)}
    drops_inside = False
    tokens = "the image's own height x width of patches, pooled in squares of `pooling_kernel_size`"
    resizes = AS_IT_IS

    def layouts(self, model: "PreTrainedModel", prompt: Inputs, kind: str, sizes: Sequence[int]) -> list[Layout]:
        """The image's own rows of pooled patches."""
        kernel = model.config.vision_config.pooling_kernel_size
        return [Layout.of((height // kernel, width // kernel)) for height, width in _patches(prompt)]

    def patches_of_tokens(
        self, model: "PreTrainedModel", prompt: Inputs, kind: str, lengths: Sequence[int]
    ) -> Tensor | None:
        """Squares of each image's patches, which padding follows."""
        kernel, found, start = model.config.vision_config.pooling_kernel_size, [], 0
        for (height, width), length in zip(_patches(prompt), lengths, strict=True):
            found.append(blocks((height, width), (height // kernel, width // kernel), start))
            start += length
        return torch.cat(found)

    def pictures(self, model: "PreTrainedModel", prompt: Inputs, kind: str) -> list[Tensor]:
        """A row is a patch, of pixels that hold all channels; padding left out."""
        patch = model.config.vision_config.patch_size
        found = []
        for rows, (height, width) in zip(prompt["pixel_values"], _patches(prompt), strict=True):
            cut = rows[: height * width].reshape(height, width, patch, patch, -1)
            found.append(cut.permute(4, 0, 2, 1, 3).reshape(-1, height * patch, width * patch))
        return found

    def with_pictures(
        self, model: "PreTrainedModel", prompt: Inputs, kind: str, pictures: Sequence[Tensor]
    ) -> Inputs:
        """Rows of patches, and their places ``(x, y)``."""
        patch = model.config.vision_config.patch_size
        pixels = torch.stack(list(pictures))
        height, width = (edge // patch for edge in pixels.shape[-2:])
        cut = pixels.reshape(len(pixels), -1, height, patch, width, patch)
        rows = cut.permute(0, 2, 4, 3, 5, 1).reshape(len(pixels), height * width, -1)
        lines = (torch.arange(size, device=pixels.device) for size in (height, width))
        y, x = torch.meshgrid(*lines, indexing="ij")
        places = torch.stack([x, y], dim=-1).reshape(1, -1, 2).repeat(len(pixels), 1, 1)
        return {"pixel_values": rows, "image_position_ids": places}


def _patches(prompt: Inputs) -> list[Grid]:
    """``(height, width)`` in patches of each image, from the largest (x, y) of them."""
    largest = prompt["image_position_ids"].amax(dim=1) + 1
    return [(height, width) for width, height in largest.tolist()]
