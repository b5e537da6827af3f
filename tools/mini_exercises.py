"""What the language model of mini practises: the skills, and exercises that make the picture readable."""

from __future__ import annotations

import random

from foveate.mini.phrases import NAMED, name_uniquely, noun, of
from foveate.mini.questions import SIDE_WORDS, SIDES, ask
from foveate.mini.scenes import COLUMNS, GRID, Scene, Thing

# How often each exercise is drawn; the first three are no skills: read out a cell, a thing's neighbour, a thing.
AIDS = {"cell": 0.5, "next": 0.5, "find": 1.5}
WEIGHTS = AIDS | {
    "attribute": 1.5,
    "existence": 1.0,
    "counting": 3.0,
    "reading": 0.7,
    "relation": 2.0,
    "location": 0.7,
    "comparison": 2.5,
    "compositional": 3.5,
}
WORDS = {name: {name, *words, *(noun(word, plural=True) for word in words)} for name, words in NAMED.items()}


def draw_prompts(scene: Scene, rng: random.Random, count: int) -> list[tuple[str, str, float]]:
    """`count` exercises on one scene."""
    prompts: list[tuple[str, str, float]] = []
    unasked = {word for name in NAMED for word in _unasked(scene, name)}
    kinds = rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=3 * count)
    for kind in kinds:
        if len(prompts) == count:
            break
        found = exercise(scene, rng, kind)
        if found and not _mentions(found, unasked):
            prompts.append((*found, {"cell": 0.4, "next": 0.4, "find": 0.6}.get(kind, 1.0)))
    return prompts


def exercise(scene: Scene, rng: random.Random, kind: str) -> tuple[str, str] | None:
    """A question text and its answer, for a skill or an aid."""
    if kind == "cell":
        empty = rng.random() < 0.2
        row, col = (rng.randrange(GRID), rng.randrange(GRID)) if empty else _place(rng.choice(scene.things))
        found = [thing for thing in scene.things if _place(thing) == (row, col)]
        return f"What is in cell {COLUMNS[col]}{row + 1}?", _read(found[0]) if found else "nothing"
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
            return question.text, question.spoken
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


def _unasked(scene: Scene, name: str) -> set[str]:
    """All words of an attribute where some thing's value of it has none: is a reddish thing red?"""
    values = {getattr(thing, name) for thing in scene.things}
    return WORDS[name] | values if values - set(NAMED[name]) else set()


def _mentions(found: tuple[str, str], words: set[str]) -> bool:
    return bool(words & {word.rstrip(".?,") for text in found for word in text.split()})


def _read(thing: Thing) -> str:
    return f"{thing.size} {thing.colour} {thing.shape} {thing.letter} {thing.cell}"


def _place(thing: Thing) -> tuple[int, int]:
    return thing.row, thing.col
