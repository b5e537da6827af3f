"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: positions of three axes, patches of all images in one tensor."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models import qwen2_5_vl, qwen2_vl, qwen3_vl
from vllm.multimodal import MULTIMODAL_REGISTRY

from foveate.families.layout import Layout
from foveate.vllm.models.pruning import PruningModel
from foveate.vllm.processor import PruningProcessor


class Qwen(PruningModel):
    """What the three have in common."""

    def offsets_of(self, layout: Layout) -> Tensor:
        """See `PruningModel.offsets_of`: time, row and column in the image's one grid."""
        ((height, width),) = layout.grids
        return torch.cartesian_prod(torch.arange(1), torch.arange(height), torch.arange(width))

    def part(self, fields: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
        """See `PruningModel.part`."""
        grids = fields["image_grid_thw"]
        ends = [0, *grids.prod(dim=-1).cumsum(dim=0).tolist()]
        return {
            **fields,
            "pixel_values": fields["pixel_values"][ends[start] : ends[stop]],
            "image_grid_thw": grids[start:stop],
        }

    def get_encoder_cudagraph_config(self) -> Any:
        """None of our encoders run in CUDA graphs: these go past `embed_multimodal`."""
        stock = super().get_encoder_cudagraph_config()  # type: ignore[misc]
        return stock if self.offsets is None else replace(stock, modalities=[])


class Qwen2VLProcessor(PruningProcessor, qwen2_vl.Qwen2VLMultiModalProcessor):  # noqa: D101
    pass


class Qwen25VLProcessor(PruningProcessor, qwen2_5_vl.Qwen2_5_VLMultiModalProcessor):  # noqa: D101
    pass


class Qwen3VLProcessor(PruningProcessor, qwen3_vl.Qwen3VLMultiModalProcessor):  # noqa: D101
    pass


@MULTIMODAL_REGISTRY.register_processor(
    Qwen2VLProcessor, info=qwen2_vl.Qwen2VLProcessingInfo, dummy_inputs=qwen2_vl.Qwen2VLDummyInputsBuilder
)
class PrunedQwen2VL(Qwen, qwen2_vl.Qwen2VLForConditionalGeneration):
    """Qwen2-VL."""


@MULTIMODAL_REGISTRY.register_processor(
    Qwen25VLProcessor,
    info=qwen2_5_vl.Qwen2_5_VLProcessingInfo,
    dummy_inputs=qwen2_5_vl.Qwen2_5_VLDummyInputsBuilder,
)
class PrunedQwen25VL(Qwen, qwen2_5_vl.Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL."""


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3VLProcessor, info=qwen3_vl.Qwen3VLProcessingInfo, dummy_inputs=qwen3_vl.Qwen3VLDummyInputsBuilder
)
class PrunedQwen3VL(Qwen, qwen3_vl.Qwen3VLForConditionalGeneration):
    """Qwen3-VL: behind each row, those of earlier layers (deepstack), which are kept with it."""

    def width(self) -> int:
        """See `PruningModel.width`."""
        return int(self.visual_dim + self.multiscale_dim)
