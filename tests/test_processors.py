"""From pixels to text through the families' own processors and chat templates, pruned on the way.

The oracle is that of test_families.py: the stock model on the full prompt, with the dropped placeholders masked
out. Here the prompt is not written down by hand but comes from the stock processor. Videos do not: all video
processors need torchvision (`MISSING` in processors.py).
"""

from functools import cache

import numpy as np
import pytest
import torch
import transformers as hf
from packaging.version import Version
from PIL import Image
from transformers.video_utils import VideoMetadata

import foveate
from foveate.families import FAMILIES, family_of
from foveate.flow.prompt import placeholders
from foveate.prune import prepare
from foveate.text.question import questions
from foveate.text.tokenizer import template_of
from processors import KITS, MISSING, SINCE
from test_families import VERSION, difference, masked, model_of

NEW = 5
METHODS = {"rrqr": foveate.RRQR(), "resprune": foveate.ResPrune()}
SIZES = ((50, 30), (24, 64), (40, 44))  # (width, height): each family makes other grids or tiles of each
QUESTIONS = ("How many dogs are on the sofa?", "What is the cat's name?", "Is it red?")
SYSTEM = "You see animals."
ONE_GRID = {"llava", "gemma3", "paligemma"}  # these families see all images in one size
TEMPLATED = [name for name in KITS if KITS[name].template is not None]
# Numbers of images in the rows of a batch.
BATCHES = {"one image": (1,), "two images": (2,), "batch of two": (1, 2), "a text-only row": (2, 0, 1)}


@cache
def processor_of(name):
    return KITS[name].build()


def picture(index):
    width, height = SIZES[index % len(SIZES)]
    pixels = np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def said(role, text, pictures=()):
    parts = [{"type": "image", "image": picture} for picture in pictures]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


def rows_of(images_per_row):
    """``(pictures, question)`` per row."""
    indices = iter(range(sum(images_per_row)))
    return [
        ([picture(next(indices)) for _ in range(count)], QUESTIONS[row])
        for row, count in enumerate(images_per_row)
    ]


def templated(name, conversations, **options):
    inputs = processor_of(name).apply_chat_template(
        conversations,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, **options},
    )
    return dict(inputs)


def written(name, images_per_row):
    """What the processor makes of the messages; PaliGemma has no template, but a task at once."""
    rows = rows_of(images_per_row)
    if KITS[name].template is not None:
        return templated(name, [[said("user", question, pictures)] for pictures, question in rows])
    texts = ["<image>" * len(pictures) + question for pictures, question in rows]
    inputs = processor_of(name)(
        text=texts, images=[pictures for pictures, _ in rows], return_tensors="pt", padding=True
    )
    return dict(inputs)


def questions_in(name, inputs):
    model = model_of(KITS[name].animal)
    visual = placeholders(model, family_of(model), inputs["input_ids"])
    rows = [
        ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]
    skip = set(inputs["input_ids"][visual].tolist())
    return questions(processor_of(name).tokenizer, rows, skip, template_of(processor_of(name)))


def question_rows(name, inputs, question):
    """What ResPrune is shown of each row's question: its nouns' embeddings."""
    prepared = prepare(
        model_of(KITS[name].animal),
        inputs,
        [foveate.ResPrune()],
        processor=processor_of(name),
        question=question,
    )
    text, rows = prepared._text, [image.row for image in prepared._images]
    real = torch.ones(text.nouns.shape[:2], dtype=torch.bool) if text.real is None else text.real
    return [text.nouns[text.which[row]][real[text.which[row]]] for row in rows]


def answered(name, arguments):
    generated = model_of(KITS[name].animal).generate(**arguments, max_new_tokens=NEW)
    return processor_of(name).batch_decode(generated[:, -NEW:], skip_special_tokens=False)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", KITS)
def test_from_pixels_to_text_as_the_masked_full_prompt(name, batch, method):
    own, inputs = KITS[name].animal, written(name, BATCHES[batch])
    settings = {"keep": 0.5, "processor": processor_of(name)}
    pruned = foveate.prune(model_of(own), inputs, METHODS[method], **settings)
    assert len(pruned.kept) == sum(BATCHES[batch])
    full, stays = masked(own, inputs, pruned)
    assert difference(own, inputs, pruned, full, stays) < 1e-4
    expected = answered(name, full)
    assert answered(name, pruned) == expected
    with foveate.attach(model_of(own), METHODS[method], **settings):
        assert answered(name, inputs) == expected


@pytest.mark.parametrize("name", KITS)
def test_images_differ_in_their_grids(name):
    inputs = written(name, (1, 2))
    pruned = foveate.prune(model_of(KITS[name].animal), inputs, foveate.RRQR(), keep=0.5)
    assert (len(set(pruned.grids)) > 1) == (name not in ONE_GRID)


@pytest.mark.parametrize("name", ["internvl", "idefics3", "smolvlm"])
@pytest.mark.parametrize("size", [(50, 30), (24, 64), (64, 60)])
def test_a_tile_is_drawn_where_its_pixels_were(name, size):
    if name not in KITS:
        pytest.skip("this transformers cannot build the processor")
    dark = Image.new("RGB", size)
    prompt = templated(name, [[said("user", QUESTIONS[0], [dark])]])
    grids = foveate.prune(model_of(KITS[name].animal), prompt, foveate.RRQR(), keep=1.0).grids[0]
    side = grids[0][0]
    tiles = len(grids) - 1
    assert tiles > 1
    family = FAMILIES[KITS[name].animal]
    for lit in range(tiles):
        kept = [torch.arange(side**2 if tile == lit else 0) for tile in range(len(grids))]
        whole, joined = family.views("image", grids, kept, size[0] / size[1])
        assert (whole.name, whole.grid, len(whole.kept)) == ("image", (side, side), 0)
        height, width = joined.grid
        assert height * width == tiles * side**2
        flags = np.zeros(height * width, dtype=np.uint8)
        flags[joined.kept] = 255
        light = Image.fromarray(flags.reshape(height, width)).resize(size, Image.Resampling.NEAREST).convert("RGB")
        pixels = templated(name, [[said("user", QUESTIONS[0], [light])]])["pixel_values"]
        brightness = pixels.reshape(-1, *pixels.shape[-3:])[:tiles].mean(dim=(1, 2, 3))
        assert int(brightness.argmax()) == lit


# The question in the prompts


@pytest.mark.parametrize("name", KITS)
def test_the_question_is_the_users(name):
    assert questions_in(name, written(name, (1, 1, 2))) == list(QUESTIONS)


@pytest.mark.parametrize("name", KITS)
def test_prune_asks_the_users_question(name):
    model, inputs = model_of(KITS[name].animal), written(name, (1, 1, 2))
    processor = processor_of(name)
    found, given = (
        foveate.prune(model, inputs, foveate.ResPrune(), keep=0.5, processor=processor, question=question)
        for question in (None, QUESTIONS)
    )
    nouns, expected = (question_rows(name, inputs, question) for question in (None, QUESTIONS))
    assert all(torch.equal(own, other) for own, other in zip(nouns, expected, strict=True))
    assert found.report.tagger == given.report.tagger
    assert [order.tolist() for order in found.orders] == [order.tolist() for order in given.orders]


@pytest.mark.parametrize("name", TEMPLATED)
def test_the_question_is_that_of_the_last_turn(name):
    turns = [
        said("user", QUESTIONS[0], [picture(0)]),
        said("assistant", "Two."),
        said("user", QUESTIONS[1], [picture(1)]),
    ]
    assert questions_in(name, templated(name, [turns])) == [QUESTIONS[1]]


@pytest.mark.parametrize("name", TEMPLATED)
def test_the_system_prompt_is_no_part_of_the_question(name):
    turns = [said("system", SYSTEM), said("user", QUESTIONS[0], [picture(0)])]
    # Gemma 3's template writes it into the user's turn, where nothing tells it from the question.
    expected = f"{SYSTEM} {QUESTIONS[0]}" if name == "gemma3" else QUESTIONS[0]
    assert questions_in(name, templated(name, [turns])) == [expected]


def test_pan_and_scan_prunes_each_crop_and_is_no_part_of_the_question():
    crops = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 8}
    inputs = templated("gemma3", [[said("user", QUESTIONS[0], [picture(0)])]], **crops)
    pruned = foveate.prune(model_of("gemma3"), inputs, foveate.RRQR(), keep=0.5)
    assert pruned.report.tokens_before == [16] * len(inputs["pixel_values"])
    assert len(pruned.kept) > 1
    assert difference("gemma3", inputs, pruned, *masked("gemma3", inputs, pruned)) < 1e-4
    assert questions_in("gemma3", inputs) == [QUESTIONS[0]]


def test_the_times_of_frames_are_no_part_of_the_question():
    """Qwen3-VL's own text for a video; its frames would need torchvision."""
    processor = processor_of("qwen3_vl")
    times = VideoMetadata(total_num_frames=4, fps=2.0, frames_indices=[0, 1, 2, 3])
    frames = processor.replace_video_token(
        {"video_grid_thw": torch.tensor([[2, 4, 4]]), "video_metadata": [times]}, video_idx=0
    )
    assert "seconds>" in frames
    text = f"<|im_start|>user\n{frames}{QUESTIONS[0]}<|im_end|>\n<|im_start|>assistant\n"
    assert questions_in("qwen3_vl", processor.tokenizer([text], return_tensors="pt")) == [QUESTIONS[0]]


# What is there


def test_every_family_has_a_processor():
    newer = {name for name, since in SINCE.items() if Version(since) > VERSION}
    assert {model_of(kit.animal).config.model_type for kit in KITS.values()} == set(FAMILIES) - newer


@pytest.mark.parametrize(("kind", "reason"), MISSING.items())
def test_what_is_missing_is_missing_still(kind, reason):
    """Where this fails, build the real one in processors.py, and let videos go through it."""
    if kind == "SmolVLMProcessor" and "smolvlm" not in KITS:
        pytest.skip("this transformers cannot build its tokenizer's processor")
    tokenizer = KITS["smolvlm" if "smolvlm" in KITS else "idefics3"].spelling.build()
    arguments = () if "Video" in kind else (None, tokenizer, None)
    with pytest.raises(ImportError, match=reason):
        getattr(hf, kind)(*arguments)
