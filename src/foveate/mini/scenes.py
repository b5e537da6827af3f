"""Scenes the small model is trained and measured on: lettered shapes in a 4 x 4 grid of cells over a texture."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

# `fresh` scenes are like the training's, from a random stream of their own; every `dev` and `test` scene besides
# holds a combination of shape and colour, or of shape and letter, that training never showed.
Split = Literal["train", "fresh", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "fresh", "dev", "test")
FAMILIAR: tuple[Split, ...] = ("train", "fresh")
Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

IMAGE_SIZE = 192
GRID = 4
CELL = IMAGE_SIZE // GRID
JITTER = 8
COLUMNS = "abcd"
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star")
COLOURS = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (150, 50, 180),
    "cyan": (60, 210, 220),
}
SIZES = {"small": 18, "large": 28}  # pixels across
FONT_SIZES = {"small": 13, "large": 16}
LETTERS = tuple("BCEHKLMPRTXZ")
TEXTURES = ("noise", "stripes", "checks", "waves", "gradient", "speckle")

# Combinations that no training scene holds: every dev and test scene holds one.
HELD_OUT_COLOURS = frozenset(zip(SHAPES, COLOURS, strict=True))
HELD_OUT_LETTERS = frozenset(zip(SHAPES, LETTERS[::2], strict=True))


@dataclass(frozen=True)
class Thing:
    """One lettered shape in cell (`row`, `col`), shifted by (`dx`, `dy`) pixels from the cell's centre.

    In training also one of a colour without a name ('#rrggbb'), another letter, another shape ('5-gon').
    """

    shape: str
    colour: str
    size: str
    letter: str
    row: int
    col: int
    dx: int = 0
    dy: int = 0

    @property
    def centre(self) -> tuple[int, int]:
        """(x, y) in pixels."""
        return self.col * CELL + CELL // 2 + self.dx, self.row * CELL + CELL // 2 + self.dy

    @property
    def cell(self) -> str:
        """The cell's name as on a chess board seen from the top: column a-d, row 1-4."""
        return f"{COLUMNS[self.col]}{self.row + 1}"


@dataclass(frozen=True)
class Background:
    """A muted, textured ground; `seed` fixes its noise."""

    texture: str
    tone: tuple[int, int, int]
    strength: int
    period: int
    seed: int


@dataclass(frozen=True)
class Scene:
    """Things in reading order over a background, and the split they were drawn for."""

    things: tuple[Thing, ...]
    background: Background
    split: Split


def scene_rng(split: Split, seed: int | str) -> random.Random:
    """The random stream of one seed in one split; streams of different splits never meet."""
    return random.Random(f"foveate mini {split} {seed}")


def held_out(thing: Thing) -> bool:
    """Whether this shape never appears in this colour, or with this letter, in training."""
    return (thing.shape, thing.colour) in HELD_OUT_COLOURS or (thing.shape, thing.letter) in HELD_OUT_LETTERS


def random_scene(rng: random.Random, split: Split, count: int | None = None) -> Scene:
    """A scene of `count` things (default: 3 to 9); most favour a colour or a shape, so that counts spread."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: allowed are {', '.join(map(repr, SPLITS))}")
    count = rng.randint(3, 9) if count is None else count
    letters = rng.sample(LETTERS, len(LETTERS)) if rng.random() < 0.75 else rng.choices(LETTERS, k=len(LETTERS))
    colour = rng.choice(tuple(COLOURS)) if rng.random() < 0.5 else None
    shape = rng.choice(SHAPES) if rng.random() < 0.5 else None
    things = []
    for index, (row, col) in enumerate(_cells(rng, count)):
        while True:
            thing = _random_thing(
                rng, row, col, rng.choice(letters) if count > len(letters) else letters[index], shape, colour
            )
            if split in FAMILIAR and held_out(thing):
                continue
            if split in FAMILIAR or index > 0 or held_out(thing):
                break
        things.append(thing)
    things.sort(key=lambda thing: (thing.row, thing.col))
    return Scene(tuple(things), _random_background(rng), split)


def draw(scene: Scene) -> Image.Image:
    """The scene as a 192 x 192 RGB image; the same scene always gives the same pixels."""
    image = Image.fromarray(_texture(scene.background))
    for thing in scene.things:
        sprite = _sprite(thing.shape, thing.colour, thing.size, thing.letter)
        x, y = thing.centre
        image.paste(sprite, (x - sprite.width // 2, y - sprite.height // 2), sprite)
    return image


def _cells(rng: random.Random, count: int) -> list[tuple[int, int]]:
    """`count` distinct cells; about half of them touch an earlier one, so that neighbours exist."""
    free = [(row, col) for row in range(GRID) for col in range(GRID)]
    taken: list[tuple[int, int]] = []
    while len(taken) < count:
        near = [cell for cell in free if any(abs(cell[0] - r) + abs(cell[1] - c) == 1 for r, c in taken)]
        cell = rng.choice(near if near and rng.random() < 0.6 else free)
        free.remove(cell)
        taken.append(cell)
    return taken


def _random_thing(
    rng: random.Random, row: int, col: int, letter: str, shape: str | None, colour: str | None
) -> Thing:
    return Thing(
        shape=shape if shape and rng.random() < 0.55 else rng.choice(SHAPES),
        colour=colour if colour and rng.random() < 0.55 else rng.choice(tuple(COLOURS)),
        size=rng.choice(tuple(SIZES)),
        letter=letter,
        row=row,
        col=col,
        dx=rng.randint(-JITTER, JITTER),
        dy=rng.randint(-JITTER, JITTER),
    )


def _random_background(rng: random.Random) -> Background:
    grey = rng.randint(70, 180)
    red, green, blue = (grey + rng.randint(-18, 18) for _ in range(3))
    return Background(
        rng.choice(TEXTURES), (red, green, blue), rng.randint(8, 30), rng.randint(5, 24), rng.getrandbits(32)
    )


def _texture(ground: Background) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """[192, 192, 3] pixels of the background."""
    noise = np.random.default_rng(ground.seed)
    y, x = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32)
    angle = noise.uniform(0, np.pi)
    along = (x * np.cos(angle) + y * np.sin(angle)).astype(np.float32)
    pattern = _pattern(ground, noise, x, y, along) * ground.strength
    grain = noise.standard_normal((IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32) * 4
    pixels = np.asarray(ground.tone, dtype=np.float32) + (pattern + grain)[..., None]
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _pattern(ground: Background, noise: np.random.Generator, x: Array, y: Array, along: Array) -> Array:
    """[192, 192] in about -1..1."""
    period = ground.period
    wave = along * np.float32(2 * np.pi / period)
    match ground.texture:
        case "stripes":
            pattern = np.sign(np.sin(wave))
        case "checks":
            pattern = np.where((x // period + y // period) % 2 == 0, 1, -1)
        case "waves":
            pattern = np.sin(wave) * np.cos(x * np.float32(np.pi / period))
        case "gradient":
            pattern = (along - along.mean()) / np.float32(IMAGE_SIZE / 2)
        case "speckle":
            pattern = (noise.random((IMAGE_SIZE, IMAGE_SIZE)) < 1 / period) * 2
        case _:
            coarse = noise.standard_normal((IMAGE_SIZE // 4, IMAGE_SIZE // 4), dtype=np.float32)
            pattern = np.kron(coarse, np.ones((4, 4), dtype=np.float32)) * np.float32(0.6)
    textured: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = pattern.astype(np.float32)
    return textured


@cache
def _sprite(shape: str, colour: str, size: str, letter: str) -> Image.Image:
    """The lettered shape on a transparent square, RGBA; drawn four times as large, then reduced."""
    side, zoom = SIZES[size], 4
    red, green, blue = COLOURS.get(colour) or ImageColor.getrgb(colour)[:3]
    mask = Image.new("L", (side * zoom, side * zoom))
    _outline(ImageDraw.Draw(mask), shape, side * zoom)
    sprite = Image.new("RGBA", (side, side), (red, green, blue, 0))
    sprite.putalpha(mask.resize((side, side), Image.Resampling.LANCZOS))
    ink = (0, 0, 0, 255) if 0.3 * red + 0.59 * green + 0.11 * blue > 130 else (255, 255, 255, 255)
    font = ImageFont.load_default(FONT_SIZES[size])
    middle = side / 2 + (side * 0.14 if shape == "triangle" else 0)
    ImageDraw.Draw(sprite).text(
        (side / 2, middle), letter, fill=ink, font=font, anchor="mm", stroke_width=0.3, stroke_fill=ink
    )
    return sprite


def _outline(pen: ImageDraw.ImageDraw, shape: str, side: int) -> None:
    """Fill one shape into a side x side mask."""
    last, half, third = side - 1, side / 2, side / 3.2
    match shape:
        case "circle":
            pen.ellipse((0, 0, last, last), fill=255)
        case "square":
            inset = side * 0.06
            pen.rectangle((inset, inset, last - inset, last - inset), fill=255)
        case "triangle":
            pen.polygon([(half, 0), (last, last), (0, last)], fill=255)
        case "diamond":
            pen.polygon([(half, 0), (last, half), (half, last), (0, half)], fill=255)
        case "cross":
            pen.rectangle((third, 0, last - third, last), fill=255)
            pen.rectangle((0, third, last, last - third), fill=255)
        case _ if shape.endswith("-gon"):
            pen.regular_polygon((half, half, half), int(shape.removesuffix("-gon")), fill=255)
        case "star":
            turns = np.arange(10) * np.pi / 5 - np.pi / 2
            radii = np.where(np.arange(10) % 2 == 0, half, half * 0.5)
            pen.polygon(
                [(half + r * np.cos(t), half + r * np.sin(t)) for r, t in zip(radii, turns, strict=True)], fill=255
            )
