"""LLaVA-1.5 and its like: one square of patches per image, or Pixtral's rows of patches."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.families.base import AS_IT_IS, Family, Prompt, base_of
from foveate.families.layout import Layout
from foveate.hf import names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CLIP, PIXTRAL = "clip_vision_model", "pixtral"


class Llava(Family):
    """``llava`` with a CLIP or a Pixtral tower. Source: transformers 5.18 to 5.23, modeling_llava.py."""

    name = "LLaVA-1.5"
    towers: ClassVar[tuple[str, ...]] = (CLIP, PIXTRAL)
    tokens = "CLIP: a square of patches; Pixtral: the image's own height x width of patches"
    locks = "the CLS row, where the model hands it on (`vision_feature_select_strategy='full'`)"
    resizes: ClassVar[str | None] = AS_IT_IS

    def layout(self, model: "PreTrainedModel", prompt: Prompt, kind: str, index: int, n: int) -> Layout:
        """See `Family.layout`."""
        vision = model.config.vision_config
        if vision.model_type == PIXTRAL:
            return Layout.of(patches_of(prompt, index, vision.patch_size))
        side = vision.image_size // vision.patch_size
        locked = torch.zeros(n, dtype=torch.bool)
        locked[0] = model.config.vision_feature_select_strategy == "full"
        return Layout(((side, side),), locked)

    def tower_layer(self, model: "PreTrainedModel") -> int | None:
        """The layer whose output is ``hidden_states[index]``: 0 is the embedding, -1 the last output."""
        given = model.config.vision_feature_layer
        index = given if isinstance(given, int) else given[-1]
        return int(index - 1 if index > 0 else index)

    def has_cls(self, model: "PreTrainedModel") -> bool:
        """See `Family.has_cls`."""
        return bool(model.config.vision_config.model_type == CLIP)

    def carry(self, model: "PreTrainedModel", prompt: Prompt, kind: str, scores: list[Tensor]) -> list[Tensor]:
        """See `Family.carry`."""
        if self.has_cls(model):
            return [image[1:] for image in scores]
        return split_packed(scores, prompt, model.config.vision_config.patch_size)

    def projector(self, model: "PreTrainedModel") -> nn.Module | None:
        """See `Family.projector`."""
        module: nn.Module = names.at(base_of(model), "multi_modal_projector")
        return module

    def pictures(self, model: "PreTrainedModel", prompt: Prompt, kind: str) -> list[Tensor]:
        """See `Family.pictures`: without the margins that Pixtral's have in a batch."""
        whole = super().pictures(model, prompt, kind)
        if model.config.vision_config.model_type != PIXTRAL:
            return whole
        return [image[:, :height, :width] for image, (height, width) in zip(whole, sizes_of(prompt), strict=True)]

    def with_pictures(
        self, model: "PreTrainedModel", prompt: Prompt, kind: str, pictures: Sequence[Tensor]
    ) -> Prompt:
        """See `Family.with_pictures`: CLIP's tower interpolates its position embeddings."""
        pixels = torch.stack(list(pictures))
        if model.config.vision_config.model_type != PIXTRAL:
            return {"pixel_values": pixels, "interpolate_pos_encoding": True}
        sizes = torch.tensor([pixels.shape[-2:]] * len(pixels), device=pixels.device)
        return {"pixel_values": pixels, "image_sizes": sizes}


def patches_of(prompt: Prompt, index: int, patch: int) -> tuple[int, int]:
    """``(height, width)`` in patches of an image of Pixtral's tower."""
    height, width = sizes_of(prompt)[index]
    return height // patch, width // patch


def sizes_of(prompt: Prompt) -> list[tuple[int, int]]:
    """``(height, width)`` in pixels of each image; those of the pixel tensor where the prompt does not tell."""
    sizes: Any = prompt.get("image_sizes")
    if sizes is None:
        pixels = prompt["pixel_values"]
        return [tuple(pixels.shape[-2:])] * len(pixels)
    return [(int(height), int(width)) for height, width in sizes]


def split_packed(scores: list[Tensor], prompt: Prompt, patch: int) -> list[Tensor]:
    """Scores of Pixtral's patches per image: its tower attends over all images in one sequence, or one each."""
    sizes = [(height // patch) * (width // patch) for height, width in sizes_of(prompt)]
    return list(torch.split(torch.cat(scores), sizes))
