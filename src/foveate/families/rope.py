"""Qwen-VL and GLM-V: patches merged in squares, positions of three axes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from foveate.families.base import AS_IT_IS, IMAGE, PIXELS, VIDEO, Family, Inputs
from foveate.families.layout import Layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GRIDS = {IMAGE: "image_grid_thw", VIDEO: "video_grid_thw"}


class Qwen2VL(Family):
    """``qwen2_vl``; with its subclasses all that has ``get_rope_index``. Source: transformers 5.18 to 5.24."""

    name = "Qwen2-VL"
    kinds: ClassVar[tuple[str, ...]] = (IMAGE, VIDEO)
    requires: ClassVar = {kind: (grid,) for kind, grid in GRIDS.items()}
    tokens = (
        "the image's own height x width of patches, merged in squares of `spatial_merge_size`; so each time step"
    )
    resizes = AS_IT_IS

    def layouts(self, model: "PreTrainedModel", prompt: Inputs, kind: str, sizes: Sequence[int]) -> list[Layout]:
        """The image's own rows of merged patches, at each time step."""
        _, merge = _sides(model)
        grids = prompt[GRIDS[kind]].tolist()
        return [Layout.of(*[(height // merge, width // merge)] * steps) for steps, height, width in grids]

    def patches_of_tokens(
        self, model: "PreTrainedModel", prompt: Inputs, kind: str, lengths: Sequence[int]
    ) -> Tensor | None:
        """Those of a token follow one another."""
        merge = _sides(model)[1] ** 2
        patches = torch.arange(sum(lengths)).view(-1, merge)
        return patches[self._raster_order(model, prompt[GRIDS[kind]])]

    def pictures(self, model: "PreTrainedModel", prompt: Inputs, kind: str) -> list[Tensor]:
        """Each time step by itself, its frames as channels.

        A row is a patch; those that are merged to a token follow one another.
        """
        patch, merge = _sides(model)
        grids = prompt[GRIDS[kind]]
        images = torch.split(prompt[PIXELS[kind]], grids.prod(dim=1).tolist())
        found: list[Tensor] = []
        for rows, (steps, height, width) in zip(images, grids.tolist(), strict=True):
            cut = rows.reshape(steps, height // merge, width // merge, merge, merge, -1, patch, patch)
            found += cut.permute(0, 5, 1, 3, 6, 2, 4, 7).reshape(steps, -1, height * patch, width * patch)
        return found

    def with_pictures(
        self, model: "PreTrainedModel", prompt: Inputs, kind: str, pictures: Sequence[Tensor]
    ) -> Inputs:
        """Time steps do not see one another, so each may be an image of its own."""
        patch, merge = _sides(model)
        pixels = torch.stack(list(pictures))
        height, width = (edge // patch for edge in pixels.shape[-2:])
        cut = pixels.reshape(len(pixels), -1, height // merge, merge, patch, width // merge, merge, patch)
        rows = cut.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(len(pixels) * height * width, -1)
        grids = torch.tensor([[1, height, width]] * len(pixels), device=pixels.device)
        return {PIXELS[kind]: rows, GRIDS[kind]: grids}

    def _raster_order(self, model: "PreTrainedModel", grids: Tensor) -> Tensor | slice:
        """``[T]``: where the tower holds each token."""
        return slice(None)


class Qwen25VL(Qwen2VL):
    """``qwen2_5_vl``: its tower attends within windows, but for some layers."""

    name = "Qwen2.5-VL"

    def tower_layer(self, model: "PreTrainedModel") -> int | None:
        """The last one that attends over the whole image."""
        return int(max(model.config.vision_config.fullatt_block_indexes))

    def _raster_order(self, model: "PreTrainedModel", grids: Tensor) -> Tensor | slice:
        """The tower holds the tokens of a window together: windows in raster order, each in raster order."""
        vision = model.config.vision_config
        side = vision.window_size // vision.patch_size // vision.spatial_merge_size
        found, start = [], 0
        for steps, rows, columns in grids.tolist():
            height, width = rows // vision.spatial_merge_size, columns // vision.spatial_merge_size
            t, y, x = torch.meshgrid(*map(torch.arange, (steps, height, width)), indexing="ij")
            window = (t * -(-height // side) + y // side) * -(-width // side) + x // side
            found.append(start + window.flatten().argsort(stable=True).argsort())
            start += steps * height * width
        return torch.cat(found)


class Qwen3VL(Qwen2VL):
    """``qwen3_vl``: what the tower's earlier layers see is added in the language model (deepstack)."""

    name = "Qwen3-VL"


class Glm4v(Qwen2VL):
    """``glm4v``."""

    name = "GLM-4V"
    kinds = (IMAGE,)


def _sides(model: "PreTrainedModel") -> tuple[int, int]:
    """A patch's in pixels, and a token's in patches."""
    vision = model.config.vision_config
    return vision.patch_size, vision.spatial_merge_size
