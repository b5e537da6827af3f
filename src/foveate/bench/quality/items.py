"""The questions: those of the bundled model's examination, or a user's own, with what counts as right."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from foveate.errors import InvalidInputs, InvalidOption, unknown
from foveate.mini.exam import exam
from foveate.mini.questions import correct
from foveate.mini.scenes import draw
from foveate.pictures import load_picture

# Test to report, dev to tune; fresh scenes look like the training's. With each the seed of its examination, fixed,
# so that every run asks the same. On test questions of seed 0 mini was measured while its training went on.
SPLITS = {"test": 1, "dev": 0, "fresh": 0}
ARTICLES = {"a", "an", "the"}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NO_SKILL = "all"
LINE = '{"image": path, "question": text, "answers": [text, ...], "skill": optional text}'


@dataclass(frozen=True)
class Item:
    """One question about one image.

    Attributes:
        id: the same in every run.
        question: its text.
        skill: what it tests.
        image: opens or draws the picture.
        right: whether an answer is right.
    """

    id: str
    question: str
    skill: str
    image: Callable[[], Image.Image] = field(repr=False)
    right: Callable[[str], bool] = field(repr=False)


def mini_items(n: int, split: str) -> list[Item]:
    """The first ``n`` questions of a split's examination, the skills in turn.

    Raises:
        InvalidOption: another split, or no question.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    _check_count(n)
    return [
        Item(
            id=f"{split}-{index}",
            question=question.text,
            skill=question.skill,
            image=lambda scene=scene: draw(scene),  # type: ignore[misc]
            right=lambda answer, question=question: correct(answer, question),  # type: ignore[misc]
        )
        for index, (scene, question) in enumerate(exam(n, SPLITS[split], split))  # type: ignore[arg-type]
    ]


def own_items(path: Path, n: int, last_word: bool = False) -> list[Item]:
    """The first ``n`` questions of a user's JSONL file; image paths are relative to it.

    Args:
        path: one object per line, as in `LINE`; ``category`` may stand for ``skill``. Empty lines do not count.
        n: how many; fewer lines give fewer.
        last_word: whether the last word of an answer may match alone (mini thinks aloud before it answers).

    Raises:
        InvalidOption: no question.
        InvalidInputs: the file cannot be read or is empty, or a line is not as it should be.
    """
    _check_count(n)
    try:
        written = path.read_bytes()
        text = written.decode(json.detect_encoding(written))  # UTF-8, 16 or 32, with or without a byte-order mark
    except (OSError, UnicodeDecodeError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else "not a text file that can be read"
        raise InvalidInputs(f"data {str(path)!r}: {reason}") from error
    lines = enumerate(io.StringIO(text, newline=None), start=1)  # str.splitlines would cut at U+2028 within a text
    filled = [(number, line) for number, line in lines if line.strip()]
    if not filled:
        raise InvalidInputs(f"data {str(path)!r}: it is empty; allowed is one object per line, {LINE}")
    return [_own_item(path, number, line, last_word) for number, line in filled[:n]]


def matches(answer: str, answers: Sequence[str], last_word: bool = False) -> bool:
    """Whether an answer is one of those, by VQA's rules for short ones: case, full stops, articles, numbers."""
    wanted = {normalised(text) for text in answers}
    given = normalised(answer)
    return given in wanted or (last_word and given != "" and normalised(answer.split()[-1]) in wanted)


def normalised(text: str) -> str:
    """Lower case, without punctuation at the ends of words and articles, ``two`` as ``2``."""
    words = (word.strip(".,;:!?\"'") for word in text.lower().split())
    said = [str(NUMBERS.index(word)) if word in NUMBERS else word for word in words if word]
    return " ".join([word for word in said if word not in ARTICLES] or said)  # "A" may be an answer


def _own_item(path: Path, number: int, line: str, last_word: bool) -> Item:
    entry = _entry(path, number, line)
    image, answers = path.parent / entry["image"], entry["answers"]
    if not image.is_file():
        raise _bad_line(path, number, f"image {entry['image']!r}: no such file")
    try:
        with Image.open(image):  # its head alone: what no reader knows is known before the run
            pass
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = f"image {entry['image']!r}: not an image that can be read"
        raise _bad_line(path, number, reason) from error
    return Item(
        id=f"line-{number}",
        question=entry["question"],
        skill=entry.get("skill", entry.get("category", NO_SKILL)),
        image=lambda: load_picture(image),
        right=lambda answer: matches(answer, answers, last_word),
    )


def _entry(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _bad_line(path, number, "not JSON") from error
    if not isinstance(entry, dict):
        raise _bad_line(path, number, "not an object")
    for name in ("image", "question"):
        if not isinstance(entry.get(name), str) or not entry[name].strip():
            raise _bad_line(path, number, f"{name}={entry.get(name)!r}")
    answers = entry.get("answers")
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        raise _bad_line(path, number, f"answers={answers!r}")
    for name in ("skill", "category"):
        if name in entry and (not isinstance(entry[name], str) or not entry[name].strip()):
            raise _bad_line(path, number, f"{name}={entry[name]!r}")
    return entry


def _bad_line(path: Path, number: int, reason: str) -> InvalidInputs:
    return InvalidInputs(f"data {str(path)!r}, line {number}: {reason}; allowed is {LINE}")


def _check_count(n: int) -> None:
    if n < 1:
        raise InvalidOption(f"questions={n}: allowed is 1 or more")
