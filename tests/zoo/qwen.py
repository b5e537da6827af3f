"""Qwen-VL and GLM-4V: flattened patches of any number, positions in three dimensions."""

from dataclasses import replace
from functools import partial
from itertools import chain

import torch
import transformers as hf

from .animal import (
    END,
    IMAGE,
    LANGUAGE,
    PATCH,
    START,
    TEXT,
    VIDEO,
    VIDEO_END,
    VIDEO_START,
    Animal,
    Mixed,
    Picture,
    born,
    modalities,
    noise,
)

TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "depth": 3,
    "num_heads": 4,
    "patch_size": PATCH,
    "out_hidden_size": 64,
}
MERGE = 2
# Time, height and width in patches, before merging.
IMAGES = ((1, 6, 8), (1, 4, 10), (1, 8, 4))
VIDEOS = ((2, 4, 6), (3, 6, 4), (2, 4, 4))
# Qwen2.5-VL's windows are of 2 x 2 merged patches: here they are many, and do not divide the grids.
WINDOWED_IMAGES = ((1, 10, 14), (1, 6, 18), (1, 14, 6))
WINDOWED_VIDEOS = ((2, 6, 10), (3, 10, 6), (2, 6, 14))


def mrope(*section, **more):
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [*section], **more}


def qwen(kind, vision, **text):
    return born(
        kind,
        vision_config=vision,
        text_config={**LANGUAGE, "rope_parameters": mrope(2, 3, 3), **text},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )


def qwen2_vl():
    vision = {"depth": 3, "embed_dim": 32, "hidden_size": 64, "num_heads": 4, "mlp_ratio": 2, "patch_size": PATCH}
    return qwen(hf.Qwen2VLForConditionalGeneration, vision)


def qwen2_5_vl():
    # The last layer alone sees everything.
    windows = {"window_size": 16, "fullatt_block_indexes": [2]}
    return qwen(hf.Qwen2_5_VLForConditionalGeneration, {**TOWER, **windows})


def qwen3_vl():
    deepstack = {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 36}
    return qwen(
        hf.Qwen3VLForConditionalGeneration,
        {**TOWER, **deepstack},
        head_dim=16,
        num_hidden_layers=max(3, LANGUAGE["num_hidden_layers"]),
    )


def glm4v():
    return born(
        hf.Glm4vForConditionalGeneration,
        vision_config={**TOWER, "image_size": 32},
        text_config={**LANGUAGE, "rope_parameters": mrope(2, 1, 1, partial_rotary_factor=0.5)},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_start_token_id=START,
        image_end_token_id=END,
        video_start_token_id=VIDEO_START,
        video_end_token_id=VIDEO_END,
    )


def patches(grid, generator):
    return noise(generator, grid[0] * grid[1] * grid[2], 3 * 2 * PATCH**2)


def places(grid):
    """The patches of a token follow one another."""
    lines = torch.meshgrid(*map(torch.arange, (grid[0], grid[1] // MERGE, grid[2] // MERGE)), indexing="ij")
    return tuple(line.flatten().repeat_interleave(MERGE**2)[:, None] for line in lines)


def image(index, alone, generator, grids=IMAGES):
    grid = grids[index % 3]
    ids = [START, *[IMAGE] * (grid[1] * grid[2] // MERGE**2), END]
    tensors = {"pixel_values": patches(grid, generator), "image_grid_thw": torch.tensor([grid])}
    return Picture(ids, tensors, places(grid))


def video(index, alone, generator, grids=VIDEOS):
    """Qwen2-VL: one run of tokens."""
    grid = grids[index % 3]
    ids = [START, *[VIDEO] * (grid[0] * grid[1] * grid[2] // MERGE**2), END]
    tensors = {"pixel_values_videos": patches(grid, generator), "video_grid_thw": torch.tensor([grid])}
    return Picture(ids, tensors, places(grid))


def timed_video(index, alone, generator):
    """Qwen2.5-VL: also the seconds between the grid's steps in time."""
    picture = video(index, alone, generator, WINDOWED_VIDEOS)
    seconds = torch.tensor([(1.0, 0.5, 2.0)[index % 3]])
    return replace(picture, tensors={**picture.tensors, "second_per_grid_ts": seconds})


def stamped_video(index, alone, generator):
    """Qwen3-VL: a run of tokens for each step in time, after its "<0.5 seconds>"."""
    time, height, width = VIDEOS[index % 3]
    frame = [START, *[VIDEO] * (height * width // MERGE**2), END]
    stamped = [[TEXT[0], TEXT[1] + step, TEXT[-1], *frame] for step in range(time)]
    return replace(video(index, alone, generator), ids=[*chain(*stamped)])


ANIMALS = {
    "qwen2_vl": Animal(qwen2_vl, image, mark=modalities),
    "qwen2_vl_video": Animal(qwen2_vl, video, mark=modalities, placeholders=(VIDEO,)),
    "qwen2_5_vl": Animal(qwen2_5_vl, partial(image, grids=WINDOWED_IMAGES), mark=modalities),
    "qwen2_5_vl_video": Animal(qwen2_5_vl, timed_video, mark=modalities, placeholders=(VIDEO,)),
    "qwen3_vl": Animal(qwen3_vl, image, mark=modalities),
    "qwen3_vl_video": Animal(qwen3_vl, stamped_video, mark=modalities, placeholders=(VIDEO,)),
    "glm4v": Animal(glm4v, image, mark=modalities),
}

MIXED = {name: Mixed(ANIMALS[name], ANIMALS[f"{name}_video"]) for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")}
