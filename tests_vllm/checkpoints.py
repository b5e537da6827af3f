"""Tiny random checkpoints that both transformers and vLLM load, with the families' own processors and templates.

The weights are sharp (scale 1/sqrt(fan_in)), so that positions, methods and single tokens change what is answered;
heads are 32 wide, the least that vLLM's attention on a CPU takes.
"""

import sys
from pathlib import Path

import torch
import transformers as hf

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
from foveate.vllm.registration import ASPECT
from processors import KITS
from serve_checkpoint import rename
from zoo import animal
from zoo.animal import END, IMAGE, PATCH, START, VIDEO, born
from zoo.llava import PINPOINTS, TILE
from zoo.qwen import mrope

LANGUAGE = {**animal.LANGUAGE, "hidden_size": 128, "max_position_embeddings": 4096}
TOWER = {**animal.TOWER, "hidden_size": 64, "num_attention_heads": 2}
SIZE = {"shortest_edge": 256, "longest_edge": 48 * 48}  # pixels, of Qwen's images


def clip(side):
    return hf.CLIPVisionConfig(**TOWER, image_size=side, projection_dim=16)


def llava(**options):
    return born(
        hf.LlavaForConditionalGeneration,
        vision_config=clip(24),
        text_config=hf.LlamaConfig(**LANGUAGE),
        image_token_id=IMAGE,
        **options,
    )


def llava_full():
    return llava(vision_feature_select_strategy="full")


def llava_next():
    return born(
        hf.LlavaNextForConditionalGeneration,
        vision_config=clip(TILE),
        text_config=hf.LlamaConfig(**LANGUAGE),
        image_token_id=IMAGE,
        image_grid_pinpoints=PINPOINTS,
    )


def llava_onevision():
    return born(
        hf.LlavaOnevisionForConditionalGeneration,
        vision_config=hf.SiglipVisionConfig(**TOWER, image_size=TILE),
        text_config=hf.Qwen2Config(**LANGUAGE),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio=ASPECT,
        vision_feature_layer=-1,
    )


def qwen(kind, vision, **text):
    return born(
        kind,
        embeddings=0.05,  # quiet beside what attention adds, or the last word alone would decide the next
        vision_config=vision,
        text_config={**LANGUAGE, "rope_parameters": mrope(4, 6, 6), **text},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )


def qwen2_vl():
    vision = {"depth": 3, "embed_dim": 64, "hidden_size": 128, "num_heads": 2, "mlp_ratio": 2, "patch_size": PATCH}
    return qwen(hf.Qwen2VLForConditionalGeneration, vision)


# As the zoo's, with the names of Qwen's own configs.
BLOCKS = {"depth": 3, "hidden_size": 64, "intermediate_size": 48, "num_heads": 2, "patch_size": PATCH}


def qwen2_5_vl():
    vision = {**BLOCKS, "out_hidden_size": 128, "window_size": 16, "fullatt_block_indexes": [2]}
    return qwen(hf.Qwen2_5_VLForConditionalGeneration, vision)


def qwen3_vl():
    deep = {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 36}
    vision = {**BLOCKS, **deep, "out_hidden_size": 128}
    # vLLM reads from the config what transformers does for every Qwen3-VL.
    rope = {"rope_parameters": mrope(4, 6, 6, mrope_interleaved=True)}
    return qwen(hf.Qwen3VLForConditionalGeneration, vision, head_dim=32, num_hidden_layers=3, **rope)


def of_qwen(kind, images, videos):
    def build(tokenizer, template):
        sizes = {"size": SIZE, "patch_size": PATCH, "merge_size": 2, "temporal_patch_size": 2}
        return kind(images(**sizes), tokenizer, videos(**sizes), chat_template=template)

    return build


def of_onevision(tokenizer, template):
    side = {"height": TILE, "width": TILE}
    return hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessor(size=side, image_grid_pinpoints=PINPOINTS),
        tokenizer,
        hf.LlavaOnevisionVideoProcessor(size=side),
        num_image_tokens=(TILE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=ASPECT,
        chat_template=template,
    )


def of_kit(name):
    return lambda tokenizer, template: KITS[name].build()


def of_full(tokenizer, template):
    processor = KITS["llava"].build()
    processor.vision_feature_select_strategy = "full"
    return processor


# Per name: the model, the kit of tests/processors.py with its tokenizer and template, the processor.
CHECKPOINTS = {
    "llava": (llava, "llava", of_kit("llava")),
    "llava_full": (llava_full, "llava", of_full),
    "llava_next": (llava_next, "llava_next", of_kit("llava_next")),
    "llava_onevision": (llava_onevision, "llava_onevision", of_onevision),
    "qwen2_vl": (
        qwen2_vl,
        "qwen2_vl",
        of_qwen(hf.Qwen2VLProcessor, hf.Qwen2VLImageProcessor, hf.Qwen2VLVideoProcessor),
    ),
    "qwen2_5_vl": (
        qwen2_5_vl,
        "qwen2_5_vl",
        of_qwen(hf.Qwen2_5_VLProcessor, hf.Qwen2VLImageProcessor, hf.Qwen2VLVideoProcessor),
    ),
    "qwen3_vl": (
        qwen3_vl,
        "qwen3_vl",
        of_qwen(hf.Qwen3VLProcessor, hf.Qwen2VLImageProcessor, hf.Qwen3VLVideoProcessor),
    ),
}


# The last weights before the language model: a random tower's patches are alike, and text must not drown them.
LOUDER = ("multi_modal_projector.linear_2.weight", "visual.merger.mlp.2.weight", "visual.merger.linear_fc2.weight")


def write(name, folder):
    """Write a checkpoint; the model it was written from."""
    build, kit, processor = CHECKPOINTS[name]
    model = build()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(LOUDER):
                weight *= 4
    model.save_pretrained(folder)
    spelling = KITS[kit].spelling
    processor(spelling.build(), KITS[kit].template).save_pretrained(folder)
    rename(Path(folder) / "model.safetensors")
    model.name_or_path = str(folder)  # where foveate looks for the tokenizer
    return model
