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
POLYGONS = ("5-gon", "6-gon", "7-gon", "8-gon")  # shapes no question asks for
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


def varied_scene(index: int) -> Scene:
    """A plain scene; of every four, one with nameless colours and strange letters, one with strange shapes.

    What is a circle has to be seen in colours of all kinds, what is red on shapes of all kinds: or a red circle is
    taken for no circle, or for not red.
    """
    scene, rng = plain_scene(index), random.Random(f"varied {index}")
    match index % 4:
        case 1:
            return replace(scene, things=tuple(_repainted(thing, rng) for thing in scene.things))
        case 3:
            return replace(scene, things=tuple(_reshaped(thing, rng) for thing in scene.things))
        case _:
            return scene


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


def class_of(name: str, value: str) -> int:
    """The class of an attribute's value in `patch_labels`; IGNORE for one that has no name."""
    return NAMED[name].index(value) + 1 if value in NAMED[name] else IGNORE


def mixed_scene(index: int) -> Scene:
    """Plain and crowded scenes by turns, three to one."""
    return crowded_scene(index) if index % 4 == 0 else plain_scene(index)


def estranged(scene: Scene, seed: int) -> Scene:
    """The scene with most of its things in a nameless colour, with a strange letter, or of a strange shape."""
    rng = random.Random(f"estranged {seed}")
    return replace(scene, things=tuple(_estranged(thing, rng) for thing in scene.things))


def told_apart(scene: Scene) -> np.ndarray:
    """`patch_labels`, but shapes only where colour and letter are strange, letters where the shape is.

    Training holds out some pairs of shape and colour, and of shape and letter. A tower told the shape of red
    things learns that red is a sign of no circle. Told apart from everything they may go with, shapes and letters
    hold for all.
    """
    labels = patch_labels(scene)
    for thing in scene.things:
        if thing.colour in COLOURS or thing.letter in LETTERS:
            _forget(labels, thing, "shape")
        if thing.shape in SHAPES:
            _forget(labels, thing, "letter")
    return labels


def _forget(labels: np.ndarray, thing: Thing, name: str) -> None:
    """IGNORE an attribute of a thing."""
    rows, columns = (slice(place * SPAN, (place + 1) * SPAN) for place in (thing.row, thing.col))
    part = labels[rows, columns, list(TARGETS).index(name)]
    part[part > 0] = IGNORE


def _estranged(thing: Thing, rng: random.Random) -> Thing:
    if rng.random() < 0.4:
        thing = replace(thing, shape=rng.choice(POLYGONS))
    elif rng.random() < 0.7:
        return replace(thing, letter=rng.choice(STRANGE), colour=_nameless(rng))
    return replace(thing, colour=_nameless(rng)) if rng.random() < 0.5 else thing


def _repainted(thing: Thing, rng: random.Random) -> Thing:
    if rng.random() < 0.5:
        thing = replace(thing, colour=_nameless(rng))
    letters = [letter for letter in STRANGE if letter.isalpha()]  # digits are answers
    return replace(thing, letter=rng.choice(letters)) if rng.random() < 0.5 else thing


def _reshaped(thing: Thing, rng: random.Random) -> Thing:
    return replace(thing, shape=rng.choice(POLYGONS)) if rng.random() < 0.5 else thing


def _nameless(rng: random.Random) -> str:
    """A colour at least 70 of 442 from every named one."""
    while True:
        rgb = [rng.randrange(256) for _ in range(3)]
        if min(math.dist(rgb, named) for named in COLOURS.values()) >= 70:
            return "#{:02x}{:02x}{:02x}".format(*rgb)
