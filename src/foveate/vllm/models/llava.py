"""LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision: positions of one axis, squares and tiles of patches."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models import llava, llava_next, llava_onevision
from vllm.multimodal import MULTIMODAL_REGISTRY

from foveate.families.layout import Layout
from foveate.vllm.choice import Choice
from foveate.vllm.models.pruning import PruningModel
from foveate.vllm.positions import AXES
from foveate.vllm.processor import PruningProcessor


class OneAxis(PruningModel):
    """Positions count tokens: the three axes that vLLM knows are three times the same."""

    supports_mrope = True

    def offsets_of(self, layout: Layout) -> Tensor:
        """``[N, 3]``: the number of each token, on every axis alike."""
        return torch.arange(len(layout.locked))[:, None].expand(-1, AXES)

    def stock_positions(self, tokens: list[int], features: list[Any]) -> tuple[Tensor, int]:
        """Counted, on every axis alike."""
        return torch.arange(len(tokens)).expand(AXES, -1), 0

    def axes(self, positions: Tensor) -> Tensor:
        """``[L]``: the language model reads one axis."""
        return positions[0]


class OneAxisProcessor(PruningProcessor):
    """Dropped tokens count among the positions, of which there are only so many."""

    def check(self, images: Any, choices: Sequence[Choice], options: Mapping[str, Any]) -> None:
        """Refuse to drop more tokens than there are positions to spare.

        Raises:
            ValueError: there are more.
        """
        config = self.info.ctx.model_config
        rows = config.hf_text_config.max_position_embeddings - config.max_model_len  # see `_lengthen`
        sizes = [self._size(images, index) for index in range(len(choices))]
        dropped = sum(size - choice.count(size) for size, choice in zip(sizes, choices, strict=True))
        if dropped > rows:
            raise ValueError(
                f"{dropped} tokens of this prompt's images would be dropped: allowed are {rows}, the language "
                "model's max_position_embeddings, for their positions are not used again"
            )

    def _size(self, images: Any, index: int) -> int:
        """Tokens of an image before pruning; the most that there may be, if it is known by its uuid alone."""
        if images.get(index) is None:
            return int(self.info.get_max_image_tokens())
        size = images.get_image_size(index)
        return int(self.info.get_num_image_tokens(image_width=size.width, image_height=size.height))


class LlavaProcessor(OneAxisProcessor, llava.LlavaMultiModalProcessor):  # noqa: D101
    pass


class LlavaNextProcessor(OneAxisProcessor, llava_next.LlavaNextMultiModalProcessor):  # noqa: D101
    pass


class LlavaOnevisionProcessor(OneAxisProcessor, llava_onevision.LlavaOnevisionMultiModalProcessor):  # noqa: D101
    pass


def llava_processor(info: Any, dummy_inputs: Any, **options: Any) -> Any:
    """Ours, or the stock one for a Pixtral tower, which has the same architecture's name."""
    if isinstance(info, llava.LlavaProcessingInfo):
        return LlavaProcessor(info, dummy_inputs, **options)
    return llava.PixtralHFMultiModalProcessor(info, dummy_inputs, **options)


@MULTIMODAL_REGISTRY.register_processor(
    llava_processor,
    info=llava._build_llava_or_pixtral_hf_info,  # which of the two
    dummy_inputs=llava.LlavaDummyInputsBuilder,
)
class PrunedLlava(OneAxis, llava.LlavaForConditionalGeneration):
    """LLaVA-1.5."""


@MULTIMODAL_REGISTRY.register_processor(
    LlavaNextProcessor, info=llava_next.LlavaNextProcessingInfo, dummy_inputs=llava.LlavaDummyInputsBuilder
)
class PrunedLlavaNext(OneAxis, llava_next.LlavaNextForConditionalGeneration):
    """LLaVA-NeXT."""


@MULTIMODAL_REGISTRY.register_processor(
    LlavaOnevisionProcessor,
    info=llava_onevision.LlavaOnevisionProcessingInfo,
    dummy_inputs=llava_onevision.LlavaOnevisionDummyInputsBuilder,
)
class PrunedLlavaOnevision(OneAxis, llava_onevision.LlavaOnevisionForConditionalGeneration):
    """LLaVA-OneVision."""
