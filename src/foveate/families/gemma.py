"""Gemma 3, Gemma 4 and PaliGemma: image tokens see one another in both directions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from foveate.families.base import AS_IT_IS, IMAGE, Family, Prompt
from foveate.families.layout import Layout, square
from foveate.families.pooling import pooled

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PaliGemma(Family):
    """``paligemma``: a square of patches. Source: transformers 5.18 to 5.23."""

    name = "PaliGemma"
    towers = ("siglip_vision_model",)
    drops_inside = False
    tokens = "a square of patches"


class Gemma3(PaliGemma):
    """``gemma3``: patches pooled to a smaller square; crops of pan-and-scan count as images of their own."""

    name = "Gemma 3"
    tokens = "a square of pooled patches; each crop of pan-and-scan counts as an image"

    def carry(self, model: "PreTrainedModel", prompt: Prompt, kind: str, scores: list[Tensor]) -> list[Tensor]:
        """See `Family.carry`: the mean over the patches of a token."""
        size = square(model.config.mm_tokens_per_image)
        return [pooled(image, square(len(image)), size) for image in scores]


class Gemma4(Family):
    """``gemma4``: the image's own rows of patches, pooled. Source: transformers 5.18 to 5.23."""

    name = "Gemma 4"
    towers = ("gemma4_vision",)
    requires: ClassVar = {IMAGE: ("image_position_ids",)}
    drops_inside = False
    tokens = "the image's own height x width of patches, pooled in squares of `pooling_kernel_size`"
    resizes = AS_IT_IS

    def layout(self, model: "PreTrainedModel", prompt: Prompt, kind: str, index: int, n: int) -> Layout:
        """See `Family.layout`."""
        kernel = model.config.vision_config.pooling_kernel_size
        height, width = _patches(prompt, index)
        return Layout.of((height // kernel, width // kernel))

    def carry(self, model: "PreTrainedModel", prompt: Prompt, kind: str, scores: list[Tensor]) -> list[Tensor]:
        """See `Family.carry`: padding left out, the mean over the patches of a token."""
        kernel = model.config.vision_config.pooling_kernel_size
        found = []
        for index, image in enumerate(scores):
            height, width = grid = _patches(prompt, index)
            found.append(pooled(image[: height * width], grid, (height // kernel, width // kernel)))
        return found

    def pictures(self, model: "PreTrainedModel", prompt: Prompt, kind: str) -> list[Tensor]:
        """See `Family.pictures`: a row is a patch, of pixels that hold all channels; padding left out."""
        patch = model.config.vision_config.patch_size
        found = []
        for index, rows in enumerate(prompt["pixel_values"]):
            height, width = _patches(prompt, index)
            cut = rows[: height * width].reshape(height, width, patch, patch, -1)
            found.append(cut.permute(4, 0, 2, 1, 3).reshape(-1, height * patch, width * patch))
        return found

    def with_pictures(
        self, model: "PreTrainedModel", prompt: Prompt, kind: str, pictures: Sequence[Tensor]
    ) -> Prompt:
        """See `Family.with_pictures`."""
        patch = model.config.vision_config.patch_size
        pixels = torch.stack(list(pictures))
        height, width = (edge // patch for edge in pixels.shape[-2:])
        cut = pixels.reshape(len(pixels), -1, height, patch, width, patch)
        rows = cut.permute(0, 2, 4, 3, 5, 1).reshape(len(pixels), height * width, -1)
        lines = (torch.arange(size, device=pixels.device) for size in (height, width))
        y, x = torch.meshgrid(*lines, indexing="ij")
        places = torch.stack([x, y], dim=-1).reshape(1, -1, 2).repeat(len(pixels), 1, 1)
        return {"pixel_values": rows, "image_position_ids": places}


def _patches(prompt: Prompt, index: int) -> tuple[int, int]:
    """``(height, width)`` in patches, from the largest (x, y) of them."""
    width, height = (prompt["image_position_ids"][index].amax(dim=0) + 1).tolist()
    return height, width
