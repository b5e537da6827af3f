"""A tiny random LLaVA with sharp weights, prompts for it, and the bundled model."""

import inspect
import math
import os

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():  # read where Triton is first imported, which transformers may do
    os.environ.setdefault("TRITON_INTERPRET", "1")

import transformers
from packaging.version import Version
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import foveate
from foveate import mini

IMAGE_TOKEN, PAD = 127, 0
# transformers asks torch for this while a model is compiled: with an older torch, stock cannot be compiled either.
COMPILES = pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="transformers cannot be compiled with this torch"
)
# By what name the installed transformers takes and returns a KV cache; told without the library under test.
CACHE = (
    "cache"
    if "cache" in inspect.signature(LlavaForConditionalGeneration.forward).parameters
    else "past_key_values"
)
# Shapes of prompts that every way through must stand: `tiny_prompt(**PROMPTS[name])`.
PROMPTS = {
    "one image": {"images_per_row": (1,)},
    "two images": {"images_per_row": (2,)},
    "batch of two": {"images_per_row": (1, 2)},
    "batch of three with a text-only row": {"images_per_row": (2, 0, 1)},
    "right padding": {"images_per_row": (1, 2), "side": "right"},
}


def tiny_llava(**options):
    """LLaVA from its config alone: 36 visual tokens, weights of scale 1/sqrt(fan_in) so that logits differ."""
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=24,
        patch_size=4,
        projection_dim=16,
    )
    text = LlamaConfig(
        vocab_size=128,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=None,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN, **options)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(std=1 / math.sqrt(parameter[0].numel()))
        model.get_input_embeddings().weight.normal_(std=1.0)
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    model.generation_config.suppress_tokens = [IMAGE_TOKEN]  # stock raises when a model emits one without a cache
    return model


def tiny_prompt(images_per_row=(1,), seed=0, side="left", text=(7, 12, 5), tokens=36):
    """Processor-like inputs; ``text`` are the lengths of the text before, between and after images."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index, images in enumerate(images_per_row):
        parts = []
        for part in range(images + 1):
            length = text[(part + index) % len(text)]
            parts.append(torch.randint(3, IMAGE_TOKEN, (length,), generator=generator))
            if part < images:
                parts.append(torch.full((tokens,), IMAGE_TOKEN))
        rows.append(torch.cat(parts))
    width = max(map(len, rows))
    pads = [(width - len(row), 0) if side == "left" else (0, width - len(row)) for row in rows]
    ids = torch.stack([torch.nn.functional.pad(row, p, value=PAD) for row, p in zip(rows, pads, strict=True)])
    mask = torch.stack(
        [torch.nn.functional.pad(torch.ones_like(row), p) for row, p in zip(rows, pads, strict=True)]
    )
    pixels = torch.randn(sum(images_per_row), 3, 24, 24, generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}


def noise(seed):
    """A photo-sized picture of coloured noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (192, 192, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="session")
def tiny():
    return tiny_llava()


@pytest.fixture(scope="session")
def bundled():
    """The bundled model and its processor."""
    return mini.load()


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)  # tiny products: threads only cost


# Before this version, beams and several returned sequences mix up the images of a stock prompt that holds several.
REPEATS_RIGHTLY = Version("5.19.0") <= Version(transformers.__version__)


def features_by_row(model, inputs, full):
    """The stock prompt ``full`` with its images already encoded, row by row, as stock repeats them rightly."""
    text = {key: value for key, value in full.items() if value.shape[-2:] == inputs["input_ids"].shape}
    return {
        **text,
        "mm_encoder_outputs": foveate.prune(model, inputs, foveate.Random(), keep=1.0)["mm_encoder_outputs"],
    }
