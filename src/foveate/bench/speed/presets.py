"""Models at real dimensions from their configuration alone: no checkpoint, no hub, random weights.

What a layer costs does not depend on its weights. What is kept does, and what is answered: neither means anything.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from foveate.bench.speed.prompts import Inputs, patches, square, tiles
from foveate.errors import InvalidOption, first_line, unknown

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

CLIP_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
VICUNA_7B = {
    "vocab_size": 32064,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}
QWEN2_HALF_B = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
}
QWEN2_7B = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
}
QWEN_TOWER = {"hidden_act": "silu", "patch_size": 14, "spatial_merge_size": 2, "window_size": 112}
QWEN_MARKS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
NO_END = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
SCALE = 0.02  # of the weights: activations stay finite in half precision
SEED = 0


@dataclass(frozen=True)
class Preset:
    """A model to build, and what is put before it.

    Attributes:
        config: makes its configuration.
        inputs: makes inputs of so many visual tokens, or refuses.
        tokens: visual tokens of an image, where none are asked for.
        parameters: how many it has.
        about: for people.
    """

    config: "Callable[[], PreTrainedConfig]"
    inputs: Inputs
    tokens: int
    parameters: int
    about: str


def _llava(text: str) -> "PreTrainedConfig":
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, Qwen2Config

    language = {
        "7b": lambda: LlamaConfig(**VICUNA_7B, **NO_END),
        "0.5b": lambda: Qwen2Config(**QWEN2_HALF_B, **NO_END, tie_word_embeddings=True),
    }[text]()
    return LlavaConfig(
        vision_config=CLIPVisionConfig(**CLIP_LARGE),
        text_config=language,
        image_token_index=32000,
        tie_word_embeddings=language.tie_word_embeddings,
    )


def _llava_next() -> "PreTrainedConfig":
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig

    return LlavaNextConfig(
        vision_config=CLIPVisionConfig(**CLIP_LARGE),
        text_config=LlamaConfig(**VICUNA_7B, **NO_END),
        image_token_index=32000,
        image_grid_pinpoints=PINPOINTS,
        tie_word_embeddings=False,
    )


def _qwen(tower: dict[str, Any], language: dict[str, Any], section: list[int], tied: bool) -> "PreTrainedConfig":
    from transformers import Qwen2_5_VLConfig

    positions = {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": section}
    return Qwen2_5_VLConfig(
        vision_config={**QWEN_TOWER, **tower, "out_hidden_size": language["hidden_size"]},
        text_config={**language, **NO_END, "rope_parameters": positions, "tie_word_embeddings": tied},
        tie_word_embeddings=tied,
        **QWEN_MARKS,
    )


def _qwen_7b() -> "PreTrainedConfig":
    tower = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
    return _qwen({**tower, "fullatt_block_indexes": [7, 15, 23, 31]}, QWEN2_7B, [16, 24, 24], tied=False)


def _qwen_half_b() -> "PreTrainedConfig":
    tower = {"depth": 24, "hidden_size": 768, "intermediate_size": 2048, "num_heads": 12}
    return _qwen({**tower, "fullatt_block_indexes": [5, 11, 17, 23]}, QWEN2_HALF_B, [8, 12, 12], tied=True)


PRESETS = {
    "llava-0.5b": Preset(
        lambda: _llava("0.5b"), square, 576, 799_262_336, "CLIP ViT-L/14-336 and a decoder as Qwen2-0.5B's"
    ),
    "qwen2.5-vl-0.5b": Preset(
        _qwen_half_b, patches, 576, 677_227_008, "a windowed tower and a decoder as Qwen2-0.5B's"
    ),
    "llava-1.5-7b": Preset(lambda: _llava("7b"), square, 576, 7_063_427_072, "LLaVA-1.5-7B"),
    "llava-next-7b": Preset(_llava_next, tiles, 2928, 7_063_431_168, "LLaVA-NeXT-Vicuna-7B"),
    "qwen2.5-vl-7b": Preset(_qwen_7b, patches, 1296, 8_292_166_656, "Qwen2.5-VL-7B"),
}


def preset_of(name: str) -> Preset:
    """The preset of a name.

    Raises:
        InvalidOption: there is none.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]


def build(preset: Preset, device: torch.device, dtype: torch.dtype, attention: str) -> "PreTrainedModel":
    """The preset's model with random weights, made where it runs; in eval mode. Its answers never end.

    Raises:
        InvalidOption: this attention is not to be had here.
    """
    from transformers import AutoModelForImageTextToText
    from transformers.initialization import no_init_weights

    try:
        with torch.device(device), no_init_weights():
            model: PreTrainedModel = AutoModelForImageTextToText.from_config(
                preset.config(), dtype=dtype, attn_implementation=attention
            )
    except (ImportError, ValueError) as error:
        raise InvalidOption(
            f"attention {attention!r}: not to be had here ({first_line(error).rstrip('.')})"
        ) from error
    model.tie_weights()
    if device.type != "meta":
        _fill(model, device)
    return model.eval()


@torch.no_grad()
def _fill(model: "PreTrainedModel", device: torch.device) -> None:
    """Matrices of noise; norms as they start."""
    generator = torch.Generator(device).manual_seed(SEED)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            parameter.normal_(std=SCALE, generator=generator)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
