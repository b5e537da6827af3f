"""Questions about scenes, one generator per skill; every answer is one word, and the picture alone decides it.

Where an answer takes several looks at the picture, the question also knows the steps to it: the cells and values
met on the way. The model is taught to say them first, so its answer is the last word it says.

A generator first draws the answer it wants, evenly, and then looks for a question with that answer in the scene.
Asked of scene after scene with the same seed until one fits, the answers come out balanced, so that guessing from
the text earns no more than `chance`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from foveate.mini.phrases import NAMED, Description, name_uniquely, of
from foveate.mini.scenes import FAMILIAR, GRID, LETTERS, Scene, Thing

_T = TypeVar("_T")
Asked = tuple[str, ...]  # text, answer, steps
MOST = 6  # the largest count asked for
SIDES = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}  # as (rows, columns)
SIDE_WORDS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}


@dataclass(frozen=True)
class Question:
    """A question, its one-word answer, the skill it tests, and the words on the way to the answer."""

    text: str
    answer: str
    skill: str
    steps: tuple[str, ...] = ()

    @property
    def spoken(self) -> str:
        """The answer behind its steps: 'a1 c3 2'."""
        return " ".join((*self.steps, self.answer))


@dataclass(frozen=True)
class Skill:
    """How to ask for a skill (text, answer, steps; None if the scene does not allow it), and a guess's odds."""

    ask: Callable[[Scene, random.Random], Asked | None]
    chance: float


def ask(scene: Scene, rng: random.Random, skill: str) -> Question | None:
    """A question of this skill about the scene; None if the scene does not allow the one drawn."""
    if skill not in SKILL_TABLE:
        raise ValueError(f"unknown skill {skill!r}; the skills are {', '.join(SKILLS)}")
    asked = SKILL_TABLE[skill].ask(scene, rng)
    if asked is None:
        return None
    text, answer, *steps = asked
    return Question(text, answer, skill, tuple(steps))


def correct(answer_text: str, question: Question) -> bool:
    """Whether the last word a model says is the right one, apart from case and a full stop."""
    words = answer_text.strip().rstrip(".").split()
    return bool(words) and words[-1].lower() == question.answer.lower()


def _attribute(scene: Scene, rng: random.Random) -> Asked | None:
    name = rng.choice(("colour", "shape", "size"))
    wanted = rng.choice(NAMED[name])
    thing = _pick(rng, [thing for thing in scene.things if getattr(thing, name) == wanted])
    named = thing and name_uniquely(scene, thing, rng, without=(name,))
    if not named:
        return None
    texts = {
        "colour": ("What colour is the {}?", "What is the colour of the {}?", "Which colour does the {} have?"),
        "shape": ("What shape is the {}?", "What is the shape of the {}?", "Which shape does the {} have?"),
        "size": ("What size is the {}?", "Is the {} small or large?", "What is the size of the {}?"),
    }
    return rng.choice(texts[name]).format(named.text()), wanted


def _existence(scene: Scene, rng: random.Random) -> Asked | None:
    wanted = rng.choice(("yes", "no"))
    names = rng.choice(
        (("colour", "shape"), ("colour", "shape"), ("size", "shape"), ("size", "colour"), ("shape", "letter"))
    )
    described = _absent(scene, rng, names) if wanted == "no" else of(rng.choice(scene.things), names)
    if described is None:
        return None
    text = rng.choice(
        ("Is there a {} in the picture?", "Is there a {}?", "Does the picture show a {}?", "Can you see a {}?")
    )
    return text.format(described.text()), wanted


def _counting(scene: Scene, rng: random.Random) -> Asked | None:
    wanted = rng.randint(0, MOST)
    names = rng.choice((("colour",), ("shape",), ("colour",), ("shape",), ("size",)))
    fitting = [described for described in _all(scene, names) if described.count(scene) == wanted]
    if not fitting:
        return None
    text = rng.choice(
        ("How many {} are there?", "How many {} do you see?", "Count the {}.", "What is the number of {}?")
    )
    described = rng.choice(fitting)
    return text.format(described.text(plural=True)), str(wanted), *_cells_of(scene, described)


def _reading(scene: Scene, rng: random.Random) -> Asked | None:
    wanted = rng.choice(LETTERS)
    thing = _pick(rng, [thing for thing in scene.things if thing.letter == wanted])
    named = thing and name_uniquely(scene, thing, rng, without=("letter",))
    if not named:
        return None
    text = rng.choice(
        ("What letter is on the {}?", "Which letter does the {} carry?", "Read the letter on the {}.")
    )
    return text.format(named.text()), wanted


def _relation(scene: Scene, rng: random.Random) -> Asked | None:
    side, wanted = rng.choice(tuple(SIDES)), rng.choice(("yes", "no", "where", "where"))
    pairs = [(a, b) for a in scene.things for b in scene.things if side in _sides(a, b, strict=wanted == "where")]
    pair = _pick(rng, pairs)
    one, other = (name_uniquely(scene, thing, rng) for thing in pair) if pair else (None, None)
    if not pair or not one or not other:
        return None
    steps = [thing.cell for thing in pair]
    if wanted == "where":
        text = rng.choice(
            ("Is the {} left, right, above or below the {}?", "On which side of the {1} is the {0}?")
        )
        return text.replace("{}", "{0}", 1).replace("{}", "{1}", 1).format(one.text(), other.text()), side, *steps
    if wanted == "no":
        side = {"left": "right", "right": "left", "above": "below", "below": "above"}[side]
    text = rng.choice(("Is the {} {} the {}?", "Is the {} somewhere {} the {}?"))
    return text.format(one.text(), SIDE_WORDS[side], other.text()), wanted, *steps


def _location(scene: Scene, rng: random.Random) -> Asked | None:
    row, col = rng.randrange(GRID), rng.randrange(GRID)
    thing = _pick(rng, [thing for thing in scene.things if (thing.row, thing.col) == (row, col)])
    named = thing and name_uniquely(scene, thing, rng)
    if not thing or not named:
        return None
    text = rng.choice(("In which cell is the {}?", "Which cell holds the {}?", "Where is the {}?"))
    return text.format(named.text()), thing.cell


def _comparison(scene: Scene, rng: random.Random) -> Asked | None:
    wanted = rng.choice(("more", "fewer", "same"))
    name = rng.choice(("colour", "shape", "colour", "shape", "size"))
    found = [(described, described.count(scene)) for described in _all(scene, (name,))]
    sign = {"more": 1, "fewer": -1, "same": 0}[wanted]
    pairs = [(a, b) for a, m in found for b, n in found if a != b and (m > n) - (m < n) == sign and m + n > 0]
    pair = _pick(rng, pairs)
    if not pair:
        return None
    text = rng.choice(
        (
            "Are there more, fewer or the same number of {} as {}?",
            "Compared with {1}, are {0} more, fewer or the same?",
            "Are the {} more, fewer or the same as the {}?",
        )
    )
    text = text.replace("{}", "{0}", 1).replace("{}", "{1}", 1)
    steps = (*_cells_of(scene, pair[0]), "and", *_cells_of(scene, pair[1]))
    return text.format(pair[0].text(plural=True), pair[1].text(plural=True)), wanted, *steps


def _compositional(scene: Scene, rng: random.Random) -> Asked | None:
    kind = rng.choice(("letter", "letter", "letter", "colour", "shape", "share", "share", "far share"))
    if kind == "share":
        return _share(scene, rng)
    if kind == "far share":
        return _far_share(scene, rng)
    wanted = rng.choice(NAMED[kind])
    thing = _pick(rng, [thing for thing in scene.things if getattr(thing, kind) == wanted])
    place = thing and _neighbour(scene, thing, rng)
    if not thing or not place:
        return None
    texts = {
        "letter": ("What letter is on the {}?", "Which letter does the {} carry?"),
        "colour": ("What colour is the {}?", "What is the colour of the {}?"),
        "shape": ("What shape is the {}?", "What is the shape of the {}?"),
    }
    return rng.choice(texts[kind]).format(place[0]), wanted, place[1], thing.cell


def _share(scene: Scene, rng: random.Random) -> Asked | None:
    """Two hops: find a thing, count the things that share its colour or shape."""
    wanted, name = rng.randint(1, MOST - 1), rng.choice(("colour", "shape"))
    thing = _pick(rng, [thing for thing in scene.things if of(thing, (name,)).count(scene) == wanted])
    named = thing and name_uniquely(scene, thing, rng, without=(name,))
    if not thing or not named:
        return None
    return _share_text(rng, name, named.text()), str(wanted), thing.cell, *_sharing(scene, thing, name)


def _far_share(scene: Scene, rng: random.Random) -> Asked | None:
    """Three hops: find a thing, go to its neighbour, count the things that share that one's colour or shape."""
    wanted, name = rng.randint(1, MOST - 1), rng.choice(("colour", "shape"))
    thing = _pick(rng, [thing for thing in scene.things if of(thing, (name,)).count(scene) == wanted])
    place = thing and _neighbour(scene, thing, rng)
    if not thing or not place:
        return None
    return _share_text(rng, name, place[0]), str(wanted), place[1], thing.cell, *_sharing(scene, thing, name)


def _share_text(rng: random.Random, name: str, phrase: str) -> str:
    return rng.choice(
        ("How many things have the {0} of the {1}?", "How many things share the {0} of the {1}?")
    ).format(name, phrase)


def _sharing(scene: Scene, thing: Thing, name: str) -> tuple[str, ...]:
    """What a thing is, then the cells of all that share it: 'red a1 c3'."""
    return getattr(thing, name), *_cells_of(scene, of(thing, (name,)))


def _cells_of(scene: Scene, described: Description) -> tuple[str, ...]:
    """The cells of the things described, in reading order."""
    return tuple(thing.cell for thing in scene.things if described.matches(thing))


def _neighbour(scene: Scene, thing: Thing, rng: random.Random) -> tuple[str, str] | None:
    """'thing directly left of the red circle', which names `thing` by one next to it, and that one's cell."""
    found = []
    for side, (rows, cols) in SIDES.items():
        for other in scene.things:
            if (thing.row - other.row, thing.col - other.col) == (rows, cols) and (
                named := name_uniquely(scene, other, rng)
            ):
                found.append((f"thing directly {SIDE_WORDS[side]} the {named.text()}", other.cell))
    return _pick(rng, found)


def _sides(one: Thing, other: Thing, strict: bool) -> set[str]:
    """The sides of `other` that `one` is on; strictly: the one side, where it is in the same row or column."""
    rows, cols = one.row - other.row, one.col - other.col
    if strict and rows and cols:
        return set()
    return {side for side, (down, right) in SIDES.items() if rows * down + cols * right > 0}


def _all(scene: Scene, names: tuple[str, ...]) -> list[Description]:
    """Every description by these attributes, without the combinations training holds out."""
    found = [Description()]
    for name in names:
        found = [Description(**{**vars(d), name: value}) for d in found for value in NAMED[name]]
    return [d for d in found if scene.split not in FAMILIAR or not d.held_out()]


def _absent(scene: Scene, rng: random.Random, names: tuple[str, ...]) -> Description | None:
    """A description of nothing in the scene, half of the time one attribute away from something in it."""
    absent = [described for described in _all(scene, names) if described.count(scene) == 0]
    if rng.random() < 0.5:
        thing = rng.choice(scene.things)
        near = [d for d in absent if sum(getattr(d, n) == getattr(thing, n) for n in names) == len(names) - 1]
        absent = near or absent
    return _pick(rng, absent)


def _pick(rng: random.Random, found: list[_T]) -> _T | None:
    return rng.choice(found) if found else None


SKILL_TABLE: dict[str, Skill] = {
    "attribute": Skill(_attribute, (1 / 6 + 1 / 6 + 1 / 2) / 3),
    "existence": Skill(_existence, 1 / 2),
    "counting": Skill(_counting, 1 / (MOST + 1)),
    "reading": Skill(_reading, 1 / len(LETTERS)),
    "relation": Skill(_relation, (1 / 2 + 1 / 4) / 2),
    "location": Skill(_location, 1 / GRID**2),
    "comparison": Skill(_comparison, 1 / 3),
    "compositional": Skill(_compositional, (3 / len(LETTERS) + 2 / 6 + 3 / (MOST - 1)) / 8),
}
SKILLS: tuple[str, ...] = tuple(SKILL_TABLE)
