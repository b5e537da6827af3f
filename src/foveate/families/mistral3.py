"""Mistral 3: Pixtral's patches, merged in squares."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveate.families.base import Inputs
from foveate.families.layout import Layout, blocks
from foveate.families.llava import PIXTRAL, Llava, patches_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Mistral3(Llava):
    """``mistral3``. Source: transformers 5.18 to 5.24, modeling_mistral3.py."""

    name = "Mistral 3"
    towers = (PIXTRAL,)
    tokens = "the image's own height x width of patches, merged in squares of `spatial_merge_size`"
    locks = "nothing (row breaks are text tokens)"

    def layouts(self, model: "PreTrainedModel", prompt: Inputs, kind: str, sizes: Sequence[int]) -> list[Layout]:
        """The image's own rows of merged patches."""
        return [Layout.of(grid) for grid in patches_of(prompt, _sides(model)[0] * _sides(model)[1])]

    def patches_of_tokens(
        self, model: "PreTrainedModel", prompt: Inputs, kind: str, lengths: Sequence[int]
    ) -> Tensor | None:
        """Squares of each image's patches."""
        patch, merge = _sides(model)
        found, start = [], 0
        for height, width in patches_of(prompt, patch):
            found.append(blocks((height, width), (height // merge, width // merge), start))
            start += height * width
        return torch.cat(found)

    def with_pictures(
        self, model: "PreTrainedModel", prompt: Inputs, kind: str, pictures: Sequence[Tensor]
    ) -> Inputs:
        """An only image is given twice, for stock squeezes an only token away."""
        return super().with_pictures(
            model, prompt, kind, [*pictures, *pictures] if len(pictures) == 1 else pictures
        )

    def projector(self, model: "PreTrainedModel") -> None:
        """Several patches per token: none takes one."""


def _sides(model: "PreTrainedModel") -> tuple[int, int]:
    """A patch's in pixels, and a token's in patches."""
    return model.config.vision_config.patch_size, model.config.spatial_merge_size
