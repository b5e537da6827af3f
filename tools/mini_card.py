"""Measure mini on held-out questions: with its tokens and without them, and its CLIP pair; print the card's table.

python tools/mini_card.py                  # 2,000 questions with all tokens, 800 for each control
python tools/mini_card.py --split fresh    # scenes like the training's instead of unseen combinations
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from transformers import AutoTokenizer, CLIPModel, LlavaForConditionalGeneration, LlavaProcessor

from foveate import Random, mini, prune
from foveate.bench.statistics import wilson
from foveate.mini.exam import exam
from foveate.mini.questions import SKILL_TABLE, SKILLS, Question, correct
from foveate.mini.scenes import GRID, SPLITS, Scene, draw, held_out, random_scene, scene_rng

BATCH, ANSWER_TOKENS = 20, 24
GREY = Image.new("RGB", (192, 192), (128, 128, 128))
Items = Sequence[tuple[Scene, Question]]
Prompt = Callable[[LlavaForConditionalGeneration, LlavaProcessor, Items], Any]


def with_all(model: LlavaForConditionalGeneration, processor: LlavaProcessor, items: Items) -> Any:
    """The prompts as they are."""
    return _prompts(processor, items, [draw(scene) for scene, _ in items])


def with_random(model: LlavaForConditionalGeneration, processor: LlavaProcessor, items: Items) -> Any:
    """32 random tokens of each image."""
    return prune(model, with_all(model, processor, items), Random(), keep=32)


def with_grey(model: LlavaForConditionalGeneration, processor: LlavaProcessor, items: Items) -> Any:
    """All tokens of a grey picture."""
    return _prompts(processor, items, [GREY] * len(items))


def with_none(model: LlavaForConditionalGeneration, processor: LlavaProcessor, items: Items) -> Any:
    """The question alone: every visual token removed."""
    return _prompts(processor, items, None)


def _prompts(processor: LlavaProcessor, items: Items, images: list[Image.Image] | None) -> Any:
    mark = "<image>" if images else ""
    texts = [f"USER: {mark}\n{question.text} ASSISTANT:" for _, question in items]
    return processor(images=images, text=texts, return_tensors="pt", padding=True)


VIEWS: dict[str, Prompt] = {
    "all 576 tokens": with_all,
    "32 random tokens": with_random,
    "grey picture": with_grey,
    "no visual token": with_none,
}


def share_right(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, items: Items, view: str
) -> list[bool]:
    """Whether `generate` answers each question rightly."""
    right: list[bool] = []
    for start in track(range(0, len(items), BATCH), description=view):
        part = items[start : start + BATCH]
        with torch.inference_mode():
            prompt = VIEWS[view](model, processor, part)
            output = model.generate(**prompt, max_new_tokens=ANSWER_TOKENS)
        said = processor.batch_decode(output[:, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        for (_, question), answer in zip(part, said, strict=True):
            right.append(correct(answer, question))
    return right


def retrieval(sets: int, size: int = 100) -> tuple[int, int]:
    """How often CLIP finds an image's own caption, all things named, among `size`: (right, tried)."""
    clip = CLIPModel.from_pretrained(mini.PATH / "clip", dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(mini.PATH / "clip")
    _, processor = mini.load()
    right = 0
    for index in range(sets):
        scenes = [random_scene(scene_rng("test", f"retrieval {index} {i}"), "test", count=3) for i in range(size)]
        texts = [" and ".join(f"a {t.size} {t.colour} {t.shape}" for t in scene.things) for scene in scenes]
        pixels = processor.image_processor([draw(scene) for scene in scenes], return_tensors="pt")
        with torch.inference_mode():
            scores = clip(**words(texts, padding=True, return_tensors="pt"), **pixels).logits_per_image
        right += int((scores.argmax(1) == torch.arange(size)).sum())
    return right, sets * size


def cell(hits: list[bool]) -> str:
    """'94.1 (93.0-95.0)': per cent right with Wilson's interval."""
    low, high = wilson(np.array(hits, dtype=float))
    return f"{100 * np.mean(hits):.1f} ({100 * low:.1f}–{100 * high:.1f})"


def hits_of(right: list[bool], items: Items, skills: Sequence[str]) -> list[bool]:
    """The outcomes of questions of these skills."""
    return [hit for hit, (_, question) in zip(right, items, strict=False) if question.skill in skills]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=2000, help="with all tokens")
    parser.add_argument("--controls", type=int, default=800, help="with each of the others")
    parser.add_argument("--seed", type=int, default=1, help="0 was looked at while training went on")
    parser.add_argument("--split", choices=SPLITS[1:], default="test")
    parser.add_argument("--json", type=Path, help="also write every outcome here")
    options = parser.parse_args()
    if min(options.questions, options.controls) < len(SKILLS):
        parser.error(f"--questions and --controls must be {len(SKILLS)} or more, one per skill")
    model, processor = mini.load()
    items = exam(max(options.questions, options.controls), options.seed, options.split)
    outcomes = {}
    for view in VIEWS:
        count = options.questions if VIEWS[view] is with_all else options.controls
        outcomes[view] = share_right(model, processor, items[:count], view)
    print(f"| skill | {' | '.join(VIEWS)} | chance |\n|---|{'---|' * len(VIEWS)}---|")
    for name in ("overall", *SKILLS):
        skills = [name] if name in SKILLS else SKILLS
        chance = float(np.mean([SKILL_TABLE[skill].chance for skill in skills]))
        cells = [cell(hits_of(right, items, skills)) for right in outcomes.values()]
        print(f"| {name} | {' | '.join(cells)} | {100 * chance:.1f} |")
    everything = outcomes["all 576 tokens"]
    for least, most in ((0, 0), (1, 1), (2, 2), (3, GRID**2)):
        chosen = [hit for hit, (scene, _) in zip(everything, items, strict=False)
                  if least <= sum(map(held_out, scene.things)) <= most]  # fmt: skip
        if chosen:
            print(f"pictures with {least}{'' if least == most else ' or more'} things held out: {cell(chosen)}")
    right, tried = retrieval(3)
    print(f"\nretrieval: {right} of {tried}")
    if options.json:
        options.json.write_text(json.dumps({"outcomes": outcomes, "retrieval": [right, tried]}) + "\n")


if __name__ == "__main__":
    main()
