"""Write mini as ordinary Hugging Face checkpoints: the LLaVA model with its processor, the CLIP pair beside it."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

from transformers import (
    CLIPImageProcessorPil,
    CLIPModel,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from mini_tower import MEAN, STD

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}"
    "{%- if message['content'] is string -%}{{ message['content'] + ' ' }}"
    "{%- else -%}{%- for item in message['content'] if item['type'] == 'text' -%}"
    "{{ item['text'] + ' ' }}{%- endfor -%}{%- endif -%}"
    "{%- else -%}"
    "{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT:' }}"
    "{%- if message['content'] is string -%}"
    "{{ ' ' if message['role'] == 'assistant' else '' }}{{ message['content'] }}"
    "{%- else -%}"
    "{%- for item in message['content'] if item['type'] == 'image' -%}{{ '<image>\n' }}{%- endfor -%}"
    "{%- for item in message['content'] if item['type'] == 'text' -%}"
    "{{ ' ' if message['role'] == 'assistant' else '' }}{{ item['text'] }}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{ ' ' if message['role'] == 'user' else '</s>' }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"
)


def llava_config(clip: CLIPModel, tokenizer: PreTrainedTokenizerFast, layers: int, width: int) -> LlavaConfig:
    """LLaVA-1.5's wiring over the pair's vision tower and a small Llama."""
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        initializer_range=0.04,
    )
    return LlavaConfig(
        vision_config=clip.config.vision_config,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=576,
        tie_word_embeddings=True,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """The processor: 192-pixel images, 576 `<image>` tokens, the LLaVA-1.5 way of chatting."""
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 192},
        crop_size={"height": 192, "width": 192},
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
        do_convert_rgb=True,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def export(
    folder: Path,
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    clip: CLIPModel,
    clip_tokenizer: PreTrainedTokenizerFast,
) -> int:
    """Write both checkpoints in half precision; returns their size in bytes."""
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = processor.tokenizer
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=64,
    )
    _half(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    _half(clip).save_pretrained(folder / "clip")
    clip_tokenizer.save_pretrained(folder / "clip")
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _half(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model in half precision."""

    copied = copy.deepcopy(model).half()
    return copied
