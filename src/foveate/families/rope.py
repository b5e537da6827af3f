"""Qwen-VL and GLM-V: patches merged in squares, positions of three axes."""

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from foveate.families.base import IMAGE, VIDEO, Family, Prompt, base_of
from foveate.families.layout import Layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GRIDS = {IMAGE: "image_grid_thw", VIDEO: "video_grid_thw"}


class Qwen2VL(Family):
    """``qwen2_vl``; with its subclasses all that has ``get_rope_index``. Source: transformers 5.18 to 5.23."""

    name = "Qwen2-VL"
    kinds: ClassVar[tuple[str, ...]] = (IMAGE, VIDEO)
    requires: ClassVar = {kind: (grid,) for kind, grid in GRIDS.items()}
    tokens = (
        "the image's own height x width of patches, merged in squares of `spatial_merge_size`; so each time step"
    )

    def layout(self, model: "PreTrainedModel", prompt: Prompt, kind: str, index: int, n: int) -> Layout:
        """See `Family.layout`."""
        merge = model.config.vision_config.spatial_merge_size
        steps, height, width = prompt[GRIDS[kind]][index].tolist()
        return Layout.of(*[(height // merge, width // merge)] * steps)

    def attention(self, model: "PreTrainedModel", kind: str) -> nn.Module | None:
        """See `Family.attention`: the last block's."""
        module: nn.Module = base_of(model).visual.blocks[-1].attn
        return module

    def carry(self, model: "PreTrainedModel", prompt: Prompt, kind: str, scores: list[Tensor]) -> list[Tensor]:
        """See `Family.carry`: the mean over the patches of a token, which follow one another."""
        merge = model.config.vision_config.spatial_merge_size**2
        grids = prompt[GRIDS[kind]]
        tokens = torch.cat(scores).reshape(-1, merge, *scores[0].shape[1:]).mean(dim=1)
        images = torch.split(tokens, (grids.prod(dim=1) // merge).tolist())
        return [
            self._in_raster_order(model, image, grid) for image, grid in zip(images, grids.tolist(), strict=True)
        ]

    def _in_raster_order(self, model: "PreTrainedModel", scores: Tensor, grid: list[int]) -> Tensor:
        return scores


class Qwen25VL(Qwen2VL):
    """``qwen2_5_vl``: its tower attends within windows, but for some layers."""

    name = "Qwen2.5-VL"

    def attention(self, model: "PreTrainedModel", kind: str) -> nn.Module | None:
        """See `Family.attention`: that of the last layer that attends over the whole image."""
        whole = model.config.vision_config.fullatt_block_indexes
        module: nn.Module = base_of(model).visual.blocks[max(whole)].attn
        return module

    def _in_raster_order(self, model: "PreTrainedModel", scores: Tensor, grid: list[int]) -> Tensor:
        """The tower holds the tokens of a window together: windows in raster order, each in raster order."""
        vision = model.config.vision_config
        steps, height, width = grid[0], grid[1] // vision.spatial_merge_size, grid[2] // vision.spatial_merge_size
        side = vision.window_size // vision.patch_size // vision.spatial_merge_size
        t, y, x = torch.meshgrid(*map(torch.arange, (steps, height, width)), indexing="ij")
        across = -(-width // side)
        window = (t * -(-height // side) + y // side) * across + x // side
        order = window.flatten().argsort(stable=True)
        return scores[order.argsort().to(scores.device)]


class Qwen3VL(Qwen2VL):
    """``qwen3_vl``: what the tower's earlier layers see is added in the language model (deepstack)."""

    name = "Qwen3-VL"


class Glm4v(Qwen2VL):
    """``glm4v``."""

    name = "GLM-4V"
    kinds = (IMAGE,)
