"""What the language model of mini practises: the skills, and exercises that make the picture readable first."""

from __future__ import annotations

import random

from foveate.mini.phrases import name_uniquely, of
from foveate.mini.questions import SIDE_WORDS, SIDES, SKILLS, ask
from foveate.mini.scenes import GRID, Scene, Thing

# Exercises that are no skill: read out the whole picture, one cell, a thing's neighbour, a thing.
AIDS = ("list", "cell", "next", "find")
MIXTURES: tuple[dict[str, float], ...] = (  # how often each exercise is drawn: to begin with, then, at last
    {"cell": 2, "find": 3, "attribute": 3, "reading": 2, "location": 3, "existence": 1},
    {
        "find": 4,
        "attribute": 4,
        "location": 3,
        "existence": 1.5,
        "counting": 1.5,
        "relation": 1.5,
        "comparison": 1,
        "reading": 0.7,
        "compositional": 0.6,
    },
    {
        "cell": 0.3,
        "find": 0.5,
        "list": 0.2,
        "compositional": 2.5,
        "counting": 1.5,
        "relation": 1.3,
        "comparison": 1.3,
    },
    {
        "list": 0.05,
        "cell": 0.2,
        "next": 0.7,
        "existence": 3,
        "counting": 3,
        "compositional": 2.5,
        "comparison": 2,
        "relation": 2,
        "location": 1.5,
        "attribute": 1.5,
    },
)
REST = (0.1, 0.2, 1.0, 0.7)  # the weight of exercises not named above


def mixture(progress: float) -> dict[str, float]:
    """How often each exercise is drawn at `progress` 0 to 3 along MIXTURES."""
    progress = max(0.0, min(2.9999, progress))
    at, blend = int(progress), progress % 1
    return {
        kind: (1 - blend) * MIXTURES[at].get(kind, REST[at]) + blend * MIXTURES[at + 1].get(kind, REST[at + 1])
        for kind in (*AIDS, *SKILLS)
    }


def draw_prompts(
    scene: Scene, rng: random.Random, count: int, weights: dict[str, float]
) -> list[tuple[str, str, float]]:
    """`count` exercises on one scene, at most one list."""
    prompts: list[tuple[str, str, float]] = []
    kinds = rng.choices(list(weights), list(weights.values()), k=3 * count)
    for kind in kinds:
        if len(prompts) == count:
            break
        if kind == "list" and any(weight < 0.2 for _, _, weight in prompts):
            continue
        found = exercise(scene, rng, kind)
        if found:
            prompts.append((*found, {"list": 0.15, "cell": 0.4, "next": 0.4, "find": 0.6}.get(kind, 1.0)))
    return prompts


def exercise(scene: Scene, rng: random.Random, kind: str) -> tuple[str, str] | None:
    """A question text and its answer, for a skill or an aid."""
    if kind == "list":
        return "List the things.", ", ".join(map(_read, scene.things))
    if kind == "cell":
        empty = rng.random() < 0.2
        row, col = (rng.randrange(GRID), rng.randrange(GRID)) if empty else _place(rng.choice(scene.things))
        found = [thing for thing in scene.things if _place(thing) == (row, col)]
        return f"What is in cell {'abcdef'[col]}{row + 1}?", _read(found[0]) if found else "nothing"
    if kind == "find":
        thing = rng.choice(scene.things)
        alone = of(thing, ("letter",)).count(scene) == 1 and rng.random() < 0.5
        named = of(thing, ("letter",)) if alone else name_uniquely(scene, thing, rng)
        return (f"What is the {named.text()}?", _read(thing)) if named else None
    if kind == "next":
        return _neighbour(scene, rng)
    for _ in range(6):
        question = ask(scene, rng, kind)
        if question:
            return question.text, question.answer
    return None


def _neighbour(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    cells = {_place(thing): thing for thing in scene.things}
    sides = [(thing, side) for thing in scene.things for side, (down, right) in SIDES.items()
             if (thing.row + down, thing.col + right) in cells or rng.random() < 0.05]  # fmt: skip
    if not sides:
        return None
    thing, side = rng.choice(sides)
    named = name_uniquely(scene, thing, rng)
    if named is None:
        return None
    found = cells.get((thing.row + SIDES[side][0], thing.col + SIDES[side][1]))
    return f"What is directly {SIDE_WORDS[side]} the {named.text()}?", _read(found) if found else "nothing"


def _read(thing: Thing) -> str:
    return f"{thing.size} {thing.colour} {thing.shape} {thing.letter} {thing.cell}"


def _place(thing: Thing) -> tuple[int, int]:
    return thing.row, thing.col
