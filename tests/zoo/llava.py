"""LLaVA and its descendants, and what reads Pixtral's towers."""

from functools import partial
from types import SimpleNamespace

import torch
import transformers as hf
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from .animal import BREAK, END, IMAGE, LANGUAGE, PATCH, TOWER, VIDEO, Animal, Picture, born, noise, of_one_size

TILE, PINPOINTS = 12, [[12, 24], [24, 12], [12, 36]]
ASPECT = "anyres_max_2"  # OneVision shrinks what has more than two tiles' patches
# What the processors' counting of tokens needs of a processor.
COUNTING = SimpleNamespace(
    image_processor=SimpleNamespace(image_grid_pinpoints=PINPOINTS),
    num_additional_image_tokens=0,
    patch_size=PATCH,
    num_image_tokens=(TILE // PATCH) ** 2,
    vision_aspect_ratio=ASPECT,
)


def clip(size):
    return hf.CLIPVisionConfig(**TOWER, image_size=size, projection_dim=16)


def llava():
    return born(
        hf.LlavaForConditionalGeneration,
        vision_config=clip(24),
        text_config=hf.LlamaConfig(**LANGUAGE),
        image_token_id=IMAGE,
    )


def with_pixtral(kind, **options):
    return born(
        kind,
        vision_config=hf.PixtralVisionConfig(**TOWER, image_size=64),
        text_config=hf.MistralConfig(**LANGUAGE, sliding_window=None),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        **options,
    )


def llava_pixtral():
    return with_pixtral(hf.LlavaForConditionalGeneration, vision_feature_select_strategy="full")


def mistral3():
    return with_pixtral(hf.Mistral3ForConditionalGeneration, spatial_merge_size=2)


def llava_next():
    return born(
        hf.LlavaNextForConditionalGeneration,
        vision_config=clip(TILE),
        text_config=hf.LlamaConfig(**LANGUAGE),
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
    )


def llava_next_video(size):
    return born(
        hf.LlavaNextVideoForConditionalGeneration,
        vision_config=clip(size),
        text_config=hf.LlamaConfig(**LANGUAGE),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=PINPOINTS,
    )


def llava_onevision():
    return born(
        hf.LlavaOnevisionForConditionalGeneration,
        vision_config=hf.SiglipVisionConfig(**TOWER, image_size=TILE, vision_use_head=False),
        text_config=hf.Qwen2Config(**LANGUAGE),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio=ASPECT,
    )


def rows_of_patches(merge, index, alone, generator):
    """Pixtral: a row of tokens ends in [IMG_BREAK], the last one in [IMG_END]."""
    height, width = ((4, 6), (2, 10), (6, 3))[index % 3]
    ids = ([IMAGE] * width + [BREAK]) * height
    pixels = noise(generator, 1, 3, height * merge * PATCH, width * merge * PATCH)
    return Picture([*ids[:-1], END], {"pixel_values": pixels, "image_sizes": torch.tensor([pixels.shape[2:]])})


def tiles(processor, index, alone, generator):
    """LLaVA-NeXT and OneVision: the whole image, then its tiles without margins, a newline after each row."""
    # OneVision shrinks the first; the last has margins.
    height, width, number = ((12, 36, 4), (24, 12, 3), (9, 12, 3))[index % 3]
    counting = SimpleNamespace(**vars(COUNTING))
    counting._get_unpadded_features = partial(processor._get_unpadded_features, counting)
    count = processor._get_number_of_features(counting, height, width, TILE, TILE)
    if processor is LlavaOnevisionProcessor and not alone:  # one tile and one newline
        count, number = counting.num_image_tokens + 1, 1
    pixels = noise(generator, 1, number, 3, TILE, TILE)
    return Picture([IMAGE] * count, {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]])})


def frames(size, count, index, alone, generator):
    """Three frames, all videos of one size: they are stacked."""
    return Picture([VIDEO] * count, {"pixel_values_videos": noise(generator, 1, 3, 3, size, size)})


def image_counts(ids, images_per_row):
    """OneVision: rows without images are left out."""
    return {"batch_num_images": torch.tensor([count for count in images_per_row if count])}


ANIMALS = {
    "llava": Animal(llava, partial(of_one_size, 24, 36, [], [])),
    "llava_pixtral": Animal(llava_pixtral, partial(rows_of_patches, 1)),
    "mistral3": Animal(mistral3, partial(rows_of_patches, 2)),
    "llava_next": Animal(llava_next, partial(tiles, LlavaNextProcessor)),
    "llava_onevision": Animal(llava_onevision, partial(tiles, LlavaOnevisionProcessor), mark=image_counts),
    "llava_onevision_video": Animal(llava_onevision, partial(frames, 12, 13), placeholders=(VIDEO,)),
    "llava_next_video": Animal(partial(llava_next_video, 16), partial(frames, 16, 12), placeholders=(VIDEO,)),
    "llava_next_video_image": Animal(partial(llava_next_video, TILE), partial(tiles, LlavaNextProcessor)),
}
