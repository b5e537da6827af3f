"""How things are named in words: 'small red circle', 'red thing', 'thing with the letter K'."""

from __future__ import annotations

import random
from dataclasses import dataclass

from foveate.mini.scenes import COLOURS, HELD_OUT_COLOURS, HELD_OUT_LETTERS, LETTERS, SHAPES, SIZES, Scene, Thing

ATTRIBUTES = ("size", "colour", "shape", "letter")
NAMED = {"size": tuple(SIZES), "colour": tuple(COLOURS), "shape": SHAPES, "letter": LETTERS}
# The attribute sets a question may name a thing by.
NAMINGS = (
    ("colour", "shape"),
    ("colour", "shape"),
    ("size", "shape"),
    ("size", "colour"),
    ("size", "colour", "shape"),
    ("letter",),
    ("colour",),
    ("shape",),
)


@dataclass(frozen=True)
class Description:
    """Some attributes of a thing; None leaves one open."""

    size: str | None = None
    colour: str | None = None
    shape: str | None = None
    letter: str | None = None

    def matches(self, thing: Thing) -> bool:
        """Whether the thing has every attribute named."""
        return all(getattr(self, name) in (None, getattr(thing, name)) for name in ATTRIBUTES)

    def count(self, scene: Scene) -> int:
        """How many things of the scene match."""
        return sum(map(self.matches, scene.things))

    def held_out(self) -> bool:
        """Whether it names a combination that training scenes never hold."""
        return (self.shape, self.colour) in HELD_OUT_COLOURS or (self.shape, self.letter) in HELD_OUT_LETTERS

    def text(self, plural: bool = False) -> str:
        """'small red circle', or 'small red circles'."""
        words = [word for word in (self.size, self.colour) if word]
        words.append(noun(self.shape, plural))
        if self.letter:
            words.append(f"with the letter {self.letter}")
        return " ".join(words)


def noun(shape: str | None, plural: bool = False) -> str:
    """The shape's name, or 'thing' where the shape is left open."""
    if shape is None:
        return "things" if plural else "thing"
    return shape + ("es" if shape == "cross" else "s") * plural


def of(thing: Thing, names: tuple[str, ...]) -> Description:
    """The description of a thing by the attributes named."""
    return Description(**{name: getattr(thing, name) for name in names})


def name_uniquely(
    scene: Scene, thing: Thing, rng: random.Random, without: tuple[str, ...] = ()
) -> Description | None:
    """A description that fits this thing alone and names nothing in `without`; None if there is none."""
    namings = [names for names in NAMINGS if not set(names) & set(without)]
    for names in rng.sample(namings, len(namings)):
        description = of(thing, names)
        if description.count(scene) == 1:
            return description
    return None


def caption(things: tuple[Thing, ...], rng: random.Random, most: int = 4) -> str:
    """A caption that names up to `most` of the things, in random order, each by some of its attributes."""
    chosen = rng.sample(things, min(len(things), rng.randint(1, most)))
    opening = rng.choice(("", "a picture of ", "a scene with ", "an image of "))
    return opening + (" and ".join("a " + describe(thing, rng).text() for thing in chosen) or "nothing")


def describe(thing: Thing, rng: random.Random) -> Description:
    """A description by random attributes, mostly with colour and shape; all values that have names."""
    while True:
        names = tuple(
            name for name, chance in zip(ATTRIBUTES, (0.4, 0.85, 0.85, 0.6), strict=True) if rng.random() < chance
        )
        names = tuple(name for name in names if getattr(thing, name) in NAMED[name])
        if names:
            return of(thing, names)
