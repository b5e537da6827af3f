"""Mistral 3: Pixtral's patches, merged in squares."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from foveate.families.base import Prompt
from foveate.families.layout import Layout
from foveate.families.llava import PIXTRAL, Llava, patches_of, split_packed
from foveate.families.pooling import pooled

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Mistral3(Llava):
    """``mistral3``. Source: transformers 5.18 to 5.23, modeling_mistral3.py."""

    name = "Mistral 3"
    towers = (PIXTRAL,)
    tokens = "the image's own height x width of patches, merged in squares of `spatial_merge_size`"
    locks = "nothing (row breaks are text tokens)"

    def layout(self, model: "PreTrainedModel", prompt: Prompt, kind: str, index: int, n: int) -> Layout:
        """See `Family.layout`."""
        merge = model.config.spatial_merge_size
        return Layout.of(patches_of(prompt, index, model.config.vision_config.patch_size * merge))

    def carry(self, model: "PreTrainedModel", prompt: Prompt, kind: str, scores: list[Tensor]) -> list[Tensor]:
        """See `Family.carry`: the mean over the patches of a token."""
        patch, merge = model.config.vision_config.patch_size, model.config.spatial_merge_size
        images = split_packed(scores, prompt, patch)
        grids = [patches_of(prompt, index, patch) for index in range(len(images))]
        return [
            pooled(image, grid, (grid[0] // merge, grid[1] // merge))
            for image, grid in zip(images, grids, strict=True)
        ]

    def with_pictures(
        self, model: "PreTrainedModel", prompt: Prompt, kind: str, pictures: Sequence[Tensor]
    ) -> Prompt:
        """See `Family.with_pictures`: an only image is given twice, for stock squeezes an only token away."""
        return super().with_pictures(
            model, prompt, kind, [*pictures, *pictures] if len(pictures) == 1 else pictures
        )

    def projector(self, model: "PreTrainedModel") -> None:
        """See `Family.projector`: it takes several patches per token."""
