"""mini: scenes are fixed by their seeds, answers are true, and the checkpoint answers as well as its card says."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoTokenizer, CLIPModel

from foveate import Random, mini, prune
from foveate.mini.exam import exam
from foveate.mini.phrases import describe
from foveate.mini.questions import SKILL_TABLE, SKILLS, Question, ask, correct
from foveate.mini.scenes import (
    COLOURS,
    HELD_OUT_COLOURS,
    HELD_OUT_LETTERS,
    LETTERS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    draw,
    held_out,
    random_scene,
    scene_rng,
)

PLURALS = {**{shape + ("es" if shape == "cross" else "s"): shape for shape in SHAPES}, "things": "thing"}
STEPS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
PHRASE = r"(?:thing directly (?:left of|right of|above|below) the )?[a-z ]+?(?: with the letter [A-Z])?"


def test_scenes_are_fixed_by_split_and_seed() -> None:
    one, two = (random_scene(scene_rng("test", 5), "test") for _ in range(2))
    assert one == two
    assert np.array_equal(np.asarray(draw(one)), np.asarray(draw(two)))
    assert draw(one).size == (192, 192)
    assert one != random_scene(scene_rng("dev", 5), "dev")


def test_things_keep_to_their_cells() -> None:
    for seed in range(200):
        scene = random_scene(scene_rng("train", seed), "train")
        assert len({thing.cell for thing in scene.things}) == len(scene.things)
        for thing in scene.things:
            x, y = thing.centre
            half = SIZES[thing.size] / 2
            assert abs(x - thing.col * 48 - 24) + half <= 24
            assert abs(y - thing.row * 48 - 24) + half <= 24


def test_held_out_combinations() -> None:
    """Never in training, in every test scene, and each of them somewhere in the test scenes."""
    for seed in range(1500):
        assert not any(map(held_out, random_scene(scene_rng("train", seed), "train").things))
    colours, letters = Counter(), Counter()
    for seed in range(600):
        things = random_scene(scene_rng("test", seed), "test").things
        assert any(map(held_out, things))
        colours.update((t.shape, t.colour) for t in things)
        letters.update((t.shape, t.letter) for t in things)
    assert all(colours[pair] for pair in HELD_OUT_COLOURS)
    assert all(letters[pair] for pair in HELD_OUT_LETTERS)


def test_training_questions_never_name_a_held_out_combination() -> None:
    forbidden = [(c, s) for s, c in HELD_OUT_COLOURS]
    for seed in range(300):
        scene = random_scene(scene_rng("train", seed), "train")
        for skill in SKILLS:
            question = ask(scene, random.Random(seed), skill)
            words = re.findall(r"[a-z]+", question.text) if question else []
            for colour, shape in forbidden:
                assert not any(a == colour and PLURALS.get(b, b) == shape for a, b in itertools.pairwise(words))


@pytest.mark.parametrize("skill", SKILLS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**9), split=st.sampled_from(("train", "fresh", "dev", "test")))
def test_answers_are_true(skill: str, seed: int, split: str) -> None:
    """Every question is parsed again and answered from the scene by other code."""
    scene = random_scene(scene_rng(split, seed), split)  # type: ignore[arg-type]
    for turn in range(4):
        question = ask(scene, random.Random(seed + turn), skill)
        if question is not None:
            assert solve(scene, question.text) == question.answer, question


def test_steps_lead_to_the_answer() -> None:
    """Where a question has steps, they name cells in which the things are that decide the answer."""
    for _, question in exam(800, seed=5, split="test"):
        if question.skill == "counting":
            assert question.answer == str(len(question.steps))
            assert list(question.steps) == by_reading(question.steps)
        elif question.skill == "comparison":
            middle = question.steps.index("and")
            difference = middle - (len(question.steps) - middle - 1)
            assert question.answer == ("same" if difference == 0 else "more" if difference > 0 else "fewer")
        elif question.skill == "relation":
            assert len(question.steps) == 2
        elif question.skill == "compositional":
            assert 2 <= len(question.steps) <= 8
        else:
            assert question.steps == ()
        assert question.spoken.split() == [*question.steps, question.answer]


def by_reading(cells: tuple[str, ...]) -> list[str]:
    """Cells by row, then by column."""
    return sorted(cells, key=lambda cell: (cell[1], cell[0]))


def test_a_colour_without_a_name_is_drawn_and_never_named() -> None:
    thing = Thing("circle", "#ff8800", "large", "K", 0, 0)
    scene = random_scene(scene_rng("train", 0), "train", count=1)
    pixels = np.asarray(draw(replace(scene, things=(thing,))))
    assert tuple(pixels[16, 24]) == (255, 136, 0)
    assert all("#" not in describe(thing, random.Random(seed)).text() for seed in range(200))


def test_answers_are_balanced() -> None:
    """Always saying a skill's most frequent answer earns little more than its chance level."""
    found = exam(2400, seed=11)
    for skill in SKILLS:
        answers = Counter(question.answer for _, question in found if question.skill == skill)
        total = answers.total()
        if skill == "attribute":  # two of its six answers in each third: sizes
            assert answers.most_common(1)[0][1] / total < 0.25
        elif skill == "relation":
            assert abs(answers["yes"] - answers["no"]) < 0.15 * total
        else:
            assert answers.most_common(1)[0][1] / total < SKILL_TABLE[skill].chance + 0.1, answers


def test_exam_items_do_not_depend_on_how_many_there_are() -> None:
    assert exam(24, seed=3) == exam(40, seed=3)[:24]
    assert exam(8, seed=3) != exam(8, seed=4)
    assert [question.skill for _, question in exam(8, seed=0)] == list(SKILLS)


def test_correct() -> None:
    question = Question("What colour is the circle?", "red", "attribute")
    assert all(correct(text, question) for text in ("red", " Red", "red.\n", "a1 b2 red", "It is red."))
    assert not any(correct(text, question) for text in ("", " ", ".", "reddish", "red circle", "blue"))


def test_unknown_skill_and_split() -> None:
    scene = random_scene(scene_rng("test", 0), "test")
    with pytest.raises(ValueError, match="flying"):
        ask(scene, random.Random(0), "flying")
    with pytest.raises(ValueError, match="holiday"):
        random_scene(random.Random(0), "holiday")  # type: ignore[arg-type]


def test_checkpoint_is_small() -> None:
    assert sum(path.stat().st_size for path in mini.PATH.rglob("*") if path.is_file()) <= 12e6


def outcomes(items: list[tuple[Scene, Question]], view: str = "all") -> dict[str, list[bool]]:
    """Whether mini answers rightly, per skill, with all tokens, with 32 random ones, or of a grey picture."""
    model, processor = mini.load()
    right: dict[str, list[bool]] = {skill: [] for skill in SKILLS}
    for start in range(0, len(items), 16):
        part = items[start : start + 16]
        texts = [f"USER: <image>\n{question.text} ASSISTANT:" for _, question in part]
        images = [Image.new("RGB", (192, 192), (128,) * 3) if view == "grey" else draw(scene) for scene, _ in part]
        inputs = processor(images=images, text=texts, return_tensors="pt", padding=True)
        with torch.inference_mode():
            if view == "random":
                inputs = prune(model, inputs, Random(), keep=32)
            output = model.generate(**inputs, max_new_tokens=24)
        answers = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for (_, question), answer in zip(part, answers, strict=True):
            right[question.skill].append(correct(answer, question))
    return right


def overall(right: dict[str, list[bool]]) -> float:
    return float(np.mean([hit for hits in right.values() for hit in hits]))


@pytest.mark.parametrize("split", ["fresh", "test"])
def test_checkpoint_answers_questions(split: str) -> None:
    """All 576 tokens; the card's numbers, less three standard errors of so few questions."""
    right = outcomes(exam(160, seed=20_000, split=split))  # type: ignore[arg-type]
    assert overall(right) >= 0.855
    assert {skill for skill, hits in right.items() if np.mean(hits) < 0.55} == set()


def test_the_checkpoint_needs_its_tokens() -> None:
    """As the card says: with few of them it loses clearly, of a picture of nothing it knows nothing."""
    items = exam(160, seed=20_000, split="test")
    assert overall(outcomes(items, "random")) < 0.6
    chance = float(np.mean([SKILL_TABLE[skill].chance for skill in SKILLS]))
    assert overall(outcomes(items, "grey")) < chance + 0.1


def test_the_clip_pair_finds_captions() -> None:
    """An image's own caption among 40, of scenes with combinations never shown."""
    clip = CLIPModel.from_pretrained(mini.PATH / "clip", dtype=torch.float32).eval()
    words = AutoTokenizer.from_pretrained(mini.PATH / "clip")
    scenes = [random_scene(scene_rng("test", f"caption {index}"), "test", count=3) for index in range(40)]
    texts = [" and ".join(f"a {t.size} {t.colour} {t.shape}" for t in scene.things) for scene in scenes]
    pixels = mini.load()[1].image_processor([draw(scene) for scene in scenes], return_tensors="pt")
    with torch.inference_mode():
        found = clip(**words(texts, padding=True, return_tensors="pt"), **pixels).logits_per_image.argmax(dim=1)
    assert int((found == torch.arange(40)).sum()) >= 32


def test_template_equals_the_training_prompt() -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(mini.PATH)
    content = [{"type": "image"}, {"type": "text", "text": "Is there a red circle?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert text == "USER: <image>\nIs there a red circle? ASSISTANT:"


def test_clip_pair_shares_the_tower_and_reads_to_the_end_token() -> None:
    from transformers import AutoTokenizer, CLIPModel

    clip = CLIPModel.from_pretrained(mini.PATH / "clip", dtype=torch.float32)
    model, _ = mini.load()
    tower = model.model.vision_tower.state_dict()
    assert all(torch.equal(value, tower[name]) for name, value in clip.vision_model.state_dict().items())
    words = AutoTokenizer.from_pretrained(mini.PATH / "clip")
    short = words(["a red circle"], return_tensors="pt")
    padded = words(
        ["a red circle", "a small blue star with the letter k and a cross"], padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        alone = clip.get_text_features(**short).pooler_output
        together = clip.get_text_features(**padded).pooler_output[:1]
    torch.testing.assert_close(alone, together)


def solve(scene: Scene, text: str) -> str | None:
    """The answer to a question, by parsing its text."""
    things = scene.things
    if text.startswith(("What colour", "Which colour", "What is the colour")):
        return one(things, tail(text)).colour
    if text.startswith(("What shape", "Which shape", "What is the shape")):
        return one(things, tail(text)).shape
    if match := re.fullmatch(r"Is the (.+) small or large\?", text):
        return one(things, match[1]).size
    if text.startswith(("What size", "What is the size")):
        return one(things, tail(text)).size
    if match := re.fullmatch(
        r"(?:Is there|Does the picture show|Can you see) a (.+?)(?: in the picture)?\?", text
    ):
        return "yes" if every(things, match[1]) else "no"
    if match := re.fullmatch(r"How many things (?:have|share) the (colour|shape) of the (.+)\?", text):
        value = getattr(one(things, match[2]), match[1])
        return str(sum(getattr(thing, match[1]) == value for thing in things))
    if match := re.fullmatch(
        r"(?:How many|What is the number of|Count the) (.+?)(?: are there| do you see)?[?.]", text
    ):
        return str(len(every(things, match[1])))
    if "letter is" in text or "Which letter" in text or text.startswith("Read"):
        return one(things, re.sub(r" carry$", "", tail(text))).letter
    return solve_two(things, text)


def solve_two(things: tuple[Thing, ...], text: str) -> str | None:
    """Questions that set two things, or two groups, against each other; and cells."""
    if match := re.fullmatch(r"Is the (.+) left, right, above or below the (.+)\?", text):
        return side(one(things, match[1]), one(things, match[2]))
    if match := re.fullmatch(r"On which side of the (.+) is the (.+)\?", text):
        return side(one(things, match[2]), one(things, match[1]))
    if match := re.fullmatch(r"Is the (.+?) (?:somewhere )?(left of|right of|above|below) the (.+)\?", text):
        a, b, (down, right) = one(things, match[1]), one(things, match[3]), STEPS[match[2]]
        return "yes" if (a.row - b.row) * down + (a.col - b.col) * right > 0 else "no"
    if match := re.fullmatch(r"(?:In which cell is|Which cell holds|Where is) the (.+)\?", text):
        thing = one(things, match[1])
        return "abcd"[thing.col] + str(thing.row + 1)
    for pattern, order in (
        (r"Are there more, fewer or the same number of (.+) as (.+)\?", 1),
        (r"Compared with (.+), are (.+) more, fewer or the same\?", -1),
        (r"Are the (.+) more, fewer or the same as the (.+)\?", 1),
    ):
        if match := re.fullmatch(pattern, text):
            difference = order * (len(every(things, match[1])) - len(every(things, match[2])))
            return "same" if difference == 0 else "more" if difference > 0 else "fewer"
    return None


def tail(text: str) -> str:
    """What follows the last fitting ' the ' of a question about one thing."""
    match = re.fullmatch(
        rf".*?(?:colour|shape|size|letter)(?: is| does| of| on| is on)*? the ({PHRASE})(?: have| carry)?[?.]", text
    )
    assert match, text
    return match[1]


def every(things: tuple[Thing, ...], phrase: str) -> list[Thing]:
    """The things a phrase fits."""
    if match := re.fullmatch(r"thing directly (left of|right of|above|below) the (.+)", phrase):
        anchor, (rows, cols) = one(things, match[2]), STEPS[match[1]]
        return [thing for thing in things if (thing.row, thing.col) == (anchor.row + rows, anchor.col + cols)]
    head, _, letter = phrase.partition(" with the letter ")
    words = [PLURALS.get(word, word) for word in head.split()]
    assert all(word in (*SIZES, *COLOURS, *SHAPES, "thing") for word in words), phrase
    assert not letter or letter in LETTERS
    has = [{thing.size, thing.colour, thing.shape, "thing"} for thing in things]
    return [t for t, own in zip(things, has, strict=True) if own >= set(words) and letter in ("", t.letter)]


def one(things: tuple[Thing, ...], phrase: str) -> Thing:
    """The only thing a phrase fits."""
    (thing,) = every(things, phrase)
    return thing


def side(one: Thing, other: Thing) -> str:
    """The side of `other` that `one` is on, in the same row or column."""
    rows, cols = one.row - other.row, one.col - other.col
    assert (rows == 0) != (cols == 0)
    return ("left" if cols < 0 else "right") if rows == 0 else "above" if rows < 0 else "below"
