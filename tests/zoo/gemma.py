"""Gemma 3, Gemma 4 and PaliGemma: tokens of one image see each other in both directions."""

from functools import partial

import torch
import transformers as hf
from torch.nn.functional import pad

from .animal import (
    AUDIO,
    EMBEDDINGS,
    END,
    IMAGE,
    LANGUAGE,
    PARAGRAPH,
    PATCH,
    START,
    TOWER,
    VIDEO,
    VOCABULARY,
    Animal,
    Picture,
    born,
    modalities,
    of_one_size,
)

TEXT = {**LANGUAGE, "head_dim": 16}
LAYERS = ["sliding_attention", "full_attention"]
WINDOW = 256  # longer than any prompt here: pruned and masked prompts differ in what a window holds


def born_scaled(kind, **config):
    return born(kind, embeddings=EMBEDDINGS / 8, **config)  # Gemma multiplies them by the root of its width, 64


def siglip(size, **more):
    return hf.SiglipVisionConfig(**TOWER, image_size=size, vision_use_head=False, **more)


def gemma3():
    return born_scaled(
        hf.Gemma3ForConditionalGeneration,
        vision_config=siglip(32),
        text_config={**TEXT, "layer_types": LAYERS, "sliding_window": WINDOW, "query_pre_attn_scalar": 16},
        mm_tokens_per_image=16,
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
    )


def paligemma():
    return born_scaled(
        hf.PaliGemmaForConditionalGeneration,
        vision_config=siglip(16, projection_dim=64),
        text_config=hf.GemmaConfig(**TEXT),
        projection_dim=64,
        image_token_index=IMAGE,
    )


def gemma4():
    """As the small checkpoints: embeddings per layer, and late layers that use the keys of earlier ones."""
    text = {
        "num_hidden_layers": 4,
        "layer_types": LAYERS * 2,
        "num_kv_shared_layers": 2,
        "sliding_window": WINDOW,
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "use_bidirectional_attention": "vision",
    }
    return born_scaled(
        hf.Gemma4ForConditionalGeneration,
        vision_config={**TOWER, "num_key_value_heads": 4, "head_dim": 8, "pooling_kernel_size": 2},
        text_config={**TEXT, **text},
        audio_config=None,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=AUDIO,
        boi_token_id=START,
        eoi_token_id=END,
    )


def padded_patches(index, alone, generator):
    """Gemma 4: flattened patches and the (x, y) of each, both padded to one length; 2 x 2 make a token."""
    height, width = ((6, 8), (4, 10), (8, 4))[index % 3]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    missing = (0, 0, 0, 64 - height * width)
    pixels = torch.rand(height * width, 3 * PATCH**2, generator=generator)
    tensors = {
        "pixel_values": pad(pixels, missing)[None],
        "image_position_ids": pad(torch.stack([x, y], dim=-1).reshape(-1, 2), missing, value=-1)[None],
    }
    lines = [pad(line.flatten() // 2, missing[2:], value=-1)[:, None] for line in (y, x)]
    return Picture([START, *[IMAGE] * (height * width // 4), END], tensors, (torch.tensor(0), *lines))


def prefixes(ids, images_per_row):
    """PaliGemma: no token is of the suffix that it would learn, which its processor says twice."""
    return {"token_type_ids": torch.zeros_like(ids), "labels": torch.full_like(ids, -100)}


ANIMALS = {
    "gemma3": Animal(
        gemma3,
        partial(of_one_size, 32, 16, [PARAGRAPH, START], [END, PARAGRAPH]),
        mark=partial(modalities, name="token_type_ids"),
    ),
    "paligemma": Animal(paligemma, partial(of_one_size, 16, 16, [], []), mark=prefixes, pictures_first=True),
    "gemma4": Animal(gemma4, padded_patches, mark=modalities),
}
