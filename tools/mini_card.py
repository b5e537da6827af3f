"""Measure mini on new questions, with all tokens and with a blank image, and write the numbers as a table.

python tools/mini_card.py --questions 2000 --blank 800
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from transformers import AutoTokenizer, CLIPModel, LlavaForConditionalGeneration, LlavaProcessor

from foveate import mini
from foveate.bench.statistics import wilson
from foveate.mini.exam import exam
from foveate.mini.questions import SKILL_TABLE, SKILLS, Question, correct
from foveate.mini.scenes import SPLITS, Scene, draw, random_scene, scene_rng

BATCH = 20
BLANK = Image.new("RGB", (192, 192), (128, 128, 128))


def ask_all(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    items: list[tuple[Scene, Question]],
    *,
    blank: bool,
) -> Iterator[tuple[str, bool]]:
    """(skill, right or wrong) of each item, answered greedily by `generate`."""
    for start in track(range(0, len(items), BATCH), description="blank" if blank else "asking"):
        part = items[start : start + BATCH]
        images = [BLANK if blank else draw(scene) for scene, _ in part]
        texts = [f"USER: <image>\n{question.text} ASSISTANT:" for _, question in part]
        inputs = processor(images=images, text=texts, return_tensors="pt", padding=True)
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=4)
        answers = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for (_, question), answer in zip(part, answers, strict=True):
            yield question.skill, correct(answer, question)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--blank", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=SPLITS[1:], default="fresh")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    model, processor = mini.load()
    seen = list(ask_all(model, processor, exam(options.questions, options.seed, options.split), blank=False))
    blind = list(ask_all(model, processor, exam(options.blank, options.seed, options.split), blank=True))
    rows = {}
    for name in ("overall", *SKILLS):
        with_image = [hit for skill, hit in seen if name in (skill, "overall")]
        without = [hit for skill, hit in blind if name in (skill, "overall")]
        low, high = wilson(np.array(with_image, dtype=float))
        skills = [name] if name in SKILLS else SKILLS
        chance = sum(SKILL_TABLE[skill].chance for skill in skills) / len(skills)
        rows[name] = {"n": len(with_image), "right": sum(with_image), "low": low, "high": high, "chance": chance}
        rows[name] |= {"blank n": len(without), "blank right": sum(without)}
        print(
            f"| {name} | {len(with_image)} | {100 * sum(with_image) / len(with_image):.1f} "
            f"({100 * low:.1f}-{100 * high:.1f}) | {100 * chance:.1f} | {100 * sum(without) / len(without):.1f} |"
        )
    right, tried = retrieval(3)
    print(f"retrieval: {right} of {tried}")
    if options.json:
        options.json.write_text(json.dumps({"skills": rows, "retrieval": [right, tried]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
