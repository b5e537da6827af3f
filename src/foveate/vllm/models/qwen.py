"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: positions of three axes, patches of all images in one tensor."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models import qwen2_5_vl, qwen2_vl, qwen3_vl
from vllm.multimodal import MULTIMODAL_REGISTRY

from foveate.families.layout import Layout
from foveate.vllm.choice import Choice
from foveate.vllm.models.pruning import PruningModel
from foveate.vllm.processor import PruningProcessor

LONGEST = 200  # the side ratio that Qwen's image processors allow


class Qwen(PruningModel):
    """What the three have in common."""

    def offsets_of(self, layout: Layout) -> Tensor:
        """``[N, 3]``: time, row and column in the image's one grid."""
        ((height, width),) = layout.grids
        return torch.cartesian_prod(torch.arange(1), torch.arange(height), torch.arange(width))

    def part(self, fields: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
        """The patches and grids of images ``start`` to ``stop``."""
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


class QwenProcessor(PruningProcessor):
    """An image takes as many positions as its grid's longer side, however few tokens are kept."""

    longer = 4  # vLLM's rotary table has so many rows for each of max_position_embeddings

    def check(self, images: Any, choices: Sequence[Choice], options: Mapping[str, Any]) -> None:
        """Refuse images with more positions than the rotary table has rows to spare.

        vLLM sees to it that tokens are at most ``max_model_len``.

        Raises:
            ValueError: there are more.
        """
        config = self.info.ctx.model_config
        rows = self.longer * _positions(config.hf_text_config)
        past = sum(self._past(images, index, choice, options) for index, choice in enumerate(choices))
        if past > rows - config.max_model_len:
            raise ValueError(
                f"this prompt's images would have {past} more positions than tokens: allowed are "
                f"{rows - config.max_model_len}, the rows of the rotary table behind max_model_len"
            )

    def _past(self, images: Any, index: int, choice: Choice, options: Mapping[str, Any]) -> int:
        """By how many positions an image exceeds the tokens that are kept of it; negative where it does not."""
        vision = self.info.get_hf_config().vision_config
        if images.get(index) is None:  # known by its uuid alone: the longest there may be
            return math.isqrt(LONGEST * int(self.info.get_max_image_tokens()))
        shown = images.get_image_size(index)
        size, tokens = self.info._get_vision_info(
            image_width=shown.width,
            image_height=shown.height,
            image_processor=self.info.get_image_processor(),
            mm_kwargs=options,
        )
        side = int(vision.patch_size) * int(vision.spatial_merge_size)
        return int(max(size.width, size.height)) // side - choice.count(tokens)


def _positions(text: Any) -> int:
    """What vLLM makes the rotary table from."""
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") == "yarn":
        return int(rope["original_max_position_embeddings"] * rope["factor"])
    return int(text.max_position_embeddings)


class Qwen2VLProcessor(QwenProcessor, qwen2_vl.Qwen2VLMultiModalProcessor):  # noqa: D101
    pass


class Qwen25VLProcessor(QwenProcessor, qwen2_5_vl.Qwen2_5_VLMultiModalProcessor):  # noqa: D101
    pass


class Qwen3VLProcessor(QwenProcessor, qwen3_vl.Qwen3VLMultiModalProcessor):
    """The table is made longer by `foveate.vllm.registration`."""

    longer = 1


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
        """The features, and those of deepstack beside them."""
        return int(self.visual_dim + self.multiscale_dim)
