"""A checkpoint with random weights at real dimensions, to measure a server with: no hub is needed.

    python tools/serve_checkpoint.py build/llava-0.5b

It is `llava-0.5b` of `foveate bench speed` with mini's tokenizer and template: CLIP ViT-L/14 at 336 x 336, 576
visual tokens, a decoder as Qwen2-0.5B's. Its vocabulary is mini's, so that whatever it answers can be written.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

from foveate import mini
from foveate.bench.speed.presets import build, preset_of

TOWER = "vision_tower."


def write(folder: Path) -> None:
    """Write model, tokenizer, template and image processor."""
    preset = preset_of("llava-0.5b")
    config, processor = preset.config(), AutoProcessor.from_pretrained(mini.PATH)
    vision, images = config.vision_config, processor.image_processor
    config.text_config.vocab_size = len(processor.tokenizer)
    config.image_token_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    images.size, images.crop_size = (
        {"shortest_edge": vision.image_size},
        {"height": vision.image_size, "width": vision.image_size},
    )
    processor.patch_size = vision.patch_size
    build(replace(preset, config=lambda: config), torch.device("cpu"), torch.float32, "sdpa").save_pretrained(
        folder
    )
    rename(folder / "model.safetensors")
    processor.save_pretrained(folder)


def rename(path: Path) -> None:
    """CLIP's and SigLIP's keys as vLLM 0.32 reads them: transformers 5 saves them without ``vision_model``."""
    weights = load_file(path)
    named = {
        key.replace(TOWER, f"{TOWER}vision_model.") if TOWER in key and "vision_model" not in key else key: value
        for key, value in weights.items()
    }
    save_file(named, path, {"format": "pt"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)
