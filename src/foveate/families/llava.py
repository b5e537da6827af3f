"""LLaVA-1.5 and its like: a CLIP tower with a CLS token, a two-layer projector, a square of patches."""

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from foveate.families.base import Family

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Llava(Family):
    """``llava`` with a CLIP tower. Source: transformers 5.18 to 5.23, modeling_llava.py."""

    name = "LLaVA-1.5"
    towers = ("clip_vision_model",)
    resizes = True

    def grid(self, model: "PreTrainedModel", n: int) -> tuple[int, int]:
        """See `Family.grid`."""
        side = model.config.vision_config.image_size // model.config.vision_config.patch_size
        return side, side

    def locked(self, model: "PreTrainedModel", features: Tensor) -> Tensor:
        """See `Family.locked`: only a model that hands the CLS row on has one."""
        locked = torch.zeros(len(features), dtype=torch.bool, device=features.device)
        locked[0] = self._has_cls_row(model)
        return locked

    def cls_layer(self, model: "PreTrainedModel") -> nn.Module | None:
        """See `Family.cls_layer`."""
        layer = model.config.vision_feature_layer
        if not isinstance(layer, int):
            layer = layer[-1]
        # hidden_states[0] is the embedding: output i > 0 is that of layer i - 1, output -1 of layer -1.
        tower: Any = cast(Any, model.base_model).vision_tower
        layers = getattr(tower, "vision_model", tower).encoder.layers
        attention: nn.Module = layers[layer - 1 if layer > 0 else layer].self_attn
        return attention

    def projector(self, model: "PreTrainedModel") -> nn.Module:
        """See `Family.projector`."""
        module: nn.Module = cast(Any, model.base_model).multi_modal_projector
        return module

    def resized(
        self, model: "PreTrainedModel", arguments: dict[str, Any], size: tuple[int, int]
    ) -> dict[str, Any]:
        """See `Family.resized`: bicubic, antialiased; the tower interpolates its position embeddings."""
        patch = model.config.vision_config.patch_size
        pixels = arguments["pixel_values"]
        small = interpolate(
            pixels.float(),  # half precision has no antialiased kernel on every device
            size=(size[0] * patch, size[1] * patch),
            mode="bicubic",
            antialias=True,
        )
        return {**arguments, "pixel_values": small.to(pixels.dtype), "interpolate_pos_encoding": True}

    def _has_cls_row(self, model: "PreTrainedModel") -> bool:
        return bool(model.config.vision_feature_select_strategy == "full")
