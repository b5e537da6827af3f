"""A fixed examination: item i of a seed and split is always the same question about the same scene."""

from __future__ import annotations

import random

from foveate.mini.questions import SKILLS, Question, ask
from foveate.mini.scenes import Scene, Split, random_scene, scene_rng


def exam(n: int, seed: int, split: Split = "fresh") -> list[tuple[Scene, Question]]:
    """`n` questions, each about a scene of its own, the skills in turn."""
    return [exam_item(index, seed, split) for index in range(n)]


def exam_item(index: int, seed: int, split: Split = "fresh") -> tuple[Scene, Question]:
    """Question `index`: scenes are drawn until one allows the question that the item's seed asks for."""
    skill = SKILLS[index % len(SKILLS)]
    rng = scene_rng(split, f"exam {seed} {index}")
    wish = rng.random()
    while True:
        scene = random_scene(rng, split)
        question = ask(scene, random.Random(wish), skill)
        if question is not None:
            return scene, question
