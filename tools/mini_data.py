"""Training scenes for mini: rendered once into memory, with a label for every patch."""

from __future__ import annotations

import math
import multiprocessing
import random
from dataclasses import replace

import numpy as np

from foveate.mini.phrases import NAMED
from foveate.mini.scenes import (
    CELL,
    COLOURS,
    LETTERS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    Thing,
    draw,
    random_scene,
    scene_rng,
)

PATCH = 8
SIDE = 24  # patches per image side
SPAN = CELL // PATCH  # patches per cell side
IGNORE = -100
STRANGE = "ADFGJNOQSUVWY23456789"  # letters no question asks for
# Dense targets in the order of the last axis of `patch_labels`; class 0 is "none".
TARGETS = {
    "shape": 1 + len(SHAPES),
    "colour": 1 + len(COLOURS),
    "size": 3,
    "letter": 1 + len(LETTERS),
    "centre": 2,
}


def patch_labels(scene: Scene) -> np.ndarray:
    """[24, 24, 5] classes per patch (see TARGETS), int8; patches at the rim of a thing are IGNOREd."""
    labels = np.zeros((SIDE, SIDE, len(TARGETS)), dtype=np.int8)
    middles = np.arange(SIDE) * PATCH + PATCH / 2
    for thing in scene.things:
        x, y = thing.centre
        reach = np.maximum(np.abs(middles - x)[None, :], np.abs(middles - y)[:, None])
        half = SIZES[thing.size] / 2
        labels[reach < half + PATCH / 2] = IGNORE
        labels[reach < half + 1, :3] = [
            class_of(name, getattr(thing, name)) for name in ("shape", "colour", "size")
        ]
        labels[reach < PATCH, 3] = class_of("letter", thing.letter)
        labels[reach < half + PATCH / 2, 4] = 0
        labels[y // PATCH, x // PATCH, 4] = 1
    return labels


def crowded_scene(index: int) -> Scene:
    """A training scene with most cells filled, for the tower's crops."""
    rng = scene_rng("train", f"crowded {index}")
    return random_scene(rng, "train", count=rng.randint(9, 16))


def plain_scene(index: int) -> Scene:
    """A training scene as questions are asked about it."""
    return random_scene(scene_rng("train", index), "train")


def render(scene: Scene) -> np.ndarray:
    """[192, 192, 3] uint8."""
    return np.asarray(draw(scene))


def render_all(scenes: list[Scene], processes: int = 2) -> np.ndarray:
    """[n, 192, 192, 3] uint8, drawn by a few processes."""
    with multiprocessing.Pool(processes) as pool:
        images = np.empty((len(scenes), 192, 192, 3), dtype=np.uint8)
        for index, image in enumerate(pool.imap(render, scenes, chunksize=64)):
            images[index] = image
    return images


def texture_class(scene: Scene) -> int:
    """The background's texture as a class."""
    return TEXTURES.index(scene.background.texture)


def class_of(name: str, value: str) -> int:
    """The class of an attribute's value in `patch_labels`; IGNORE for one that has no name."""
    return NAMED[name].index(value) + 1 if value in NAMED[name] else IGNORE


def mixed_scene(index: int) -> Scene:
    """Plain and crowded scenes by turns, three to one."""
    return crowded_scene(index) if index % 4 == 0 else plain_scene(index)


def estranged(scene: Scene, seed: int) -> Scene:
    """The scene with many of its things in a colour without a name, with a strange letter, or without a shape.

    Training holds out some pairs of shape and colour, and of shape and letter; a tower that met each shape in five
    colours only takes the sixth for another shape. Strange values show it each attribute apart from the others,
    and no pair that is held out.
    """
    rng = random.Random(f"estranged {seed}")
    return replace(scene, things=tuple(_estranged(thing, rng) for thing in scene.things))


def _estranged(thing: Thing, rng: random.Random) -> Thing:
    if rng.random() < 0.12:
        return replace(thing, shape="", colour=_nameless(rng))
    if rng.random() < 0.5:
        thing = replace(thing, colour=_nameless(rng))
    return replace(thing, letter=rng.choice(STRANGE)) if rng.random() < 0.3 else thing


def _nameless(rng: random.Random) -> str:
    """A colour at least 70 of 442 from every named one."""
    while True:
        rgb = [rng.randrange(256) for _ in range(3)]
        if min(math.dist(rgb, named) for named in COLOURS.values()) >= 70:
            return "#{:02x}{:02x}{:02x}".format(*rgb)
