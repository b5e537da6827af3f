"""LLaVA-1.5 and its like: one square of patches per image, or Pixtral's rows of patches."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from foveate.families.base import AS_IT_IS, Family, Inputs, base_of
from foveate.families.layout import Grid, Layout
from foveate.hf import names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CLIP, PIXTRAL = "clip_vision_model", "pixtral"


class Llava(Family):
    """``llava`` with a CLIP or a Pixtral tower. Source: transformers 5.18 to 5.24, modeling_llava.py."""

    name = "LLaVA-1.5"
    towers: ClassVar[tuple[str, ...]] = (CLIP, PIXTRAL)
    tokens = "CLIP: a square of patches; Pixtral: the image's own height x width of patches"
    locks = "the CLS row, where the model hands it on (`vision_feature_select_strategy='full'`)"
    resizes: ClassVar[str | None] = AS_IT_IS
    told_by: ClassVar[tuple[str, ...]] = ("image_sizes",)

    def layouts(self, model: "PreTrainedModel", prompt: Inputs, kind: str, sizes: Sequence[int]) -> list[Layout]:
        """A square; of Pixtral the image's own rows."""
        vision = model.config.vision_config
        if vision.model_type == PIXTRAL:
            return [Layout.of(grid) for grid in patches_of(prompt, vision.patch_size)]
        side = vision.image_size // vision.patch_size
        locked = torch.zeros(side * side, dtype=torch.bool)
        if model.config.vision_feature_select_strategy == "full":
            locked = torch.cat([torch.ones(1, dtype=torch.bool), locked])
        return [Layout(((side, side),), locked)] * len(sizes)

    def tower_layer(self, model: "PreTrainedModel") -> int | None:
        """The layer whose output is ``hidden_states[index]``: 0 is the embedding, -1 the last output."""
        given = model.config.vision_feature_layer
        index = given if isinstance(given, int) else given[-1]
        return int(index - 1 if index > 0 else index)

    def has_cls(self, model: "PreTrainedModel") -> bool:
        """Of CLIP's tower; Pixtral's has none."""
        return bool(model.config.vision_config.model_type == CLIP)

    def patches_of_tokens(
        self, model: "PreTrainedModel", prompt: Inputs, kind: str, lengths: Sequence[int]
    ) -> Tensor | None:
        """All but the CLS token."""
        return behind_cls(lengths) if self.has_cls(model) else None

    def projector(self, model: "PreTrainedModel") -> nn.Module | None:
        """It takes one state per token, with either tower."""
        module: nn.Module = names.at(base_of(model), "multi_modal_projector")
        return module

    def pictures(self, model: "PreTrainedModel", prompt: Inputs, kind: str) -> list[Tensor]:
        """The images, without the margins that Pixtral's have in a batch."""
        whole = super().pictures(model, prompt, kind)
        if model.config.vision_config.model_type != PIXTRAL:
            return whole
        return [image[:, :height, :width] for image, (height, width) in zip(whole, sizes_of(prompt), strict=True)]

    def with_pictures(
        self, model: "PreTrainedModel", prompt: Inputs, kind: str, pictures: Sequence[Tensor]
    ) -> Inputs:
        """Any size is taken: CLIP's tower interpolates its position embeddings."""
        pixels = torch.stack(list(pictures))
        if model.config.vision_config.model_type != PIXTRAL:
            return {"pixel_values": pixels, "interpolate_pos_encoding": True}
        sizes = torch.tensor([pixels.shape[-2:]] * len(pixels), device=pixels.device)
        return {"pixel_values": pixels, "image_sizes": sizes}


def behind_cls(lengths: Sequence[int]) -> Tensor:
    """``[T, 1]``: all positions of equally long sequences, but the first of each."""
    return torch.arange(sum(lengths)).view(len(lengths), -1)[:, 1:].reshape(-1, 1)


def patches_of(prompt: Inputs, patch: int) -> list[Grid]:
    """``(height, width)`` in patches of each image of Pixtral's tower."""
    return [(height // patch, width // patch) for height, width in sizes_of(prompt)]


def sizes_of(prompt: Inputs) -> list[tuple[int, int]]:
    """``(height, width)`` in pixels of each image; those of the pixel tensor where the prompt does not tell."""
    sizes: Tensor | None = prompt.get("image_sizes")
    if sizes is None:
        pixels = prompt["pixel_values"]
        return [tuple(pixels.shape[-2:])] * len(pixels)
    return [(height, width) for height, width in sizes.tolist()]
