"""The question in a prompt: what the user's last turn says, or the turn that holds an image."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from foveate.errors import InvalidInputs
from foveate.text.flat import MARK, SKIPPED, Alphabet, alphabet_of, flat
from foveate.text.formats import user_turns
from foveate.text.tokenizer import template_of
from foveate.text.turns import turns_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What is written before images and frames in plain text: Qwen3-VL's times, Qwen2-VL's numbers, Gemma 3's words on
# crops.
WRITTEN = re.compile(
    r"(?:<\d+\.\d seconds>|(?:Picture|Video) \d+:"
    r"|Here is the original image|and here are some crops to help you see better)"
    rf"(?=\s*{MARK})"
)


def given(question: str | Sequence[str] | None, batch: int) -> list[str] | None:
    """The questions that the caller gives, one per row; None if they are to be found in the prompt.

    Raises:
        InvalidInputs: neither a text nor a list of one text per row, or text that is not Unicode.
    """
    if question is None:
        return None
    asked = [question] * batch if isinstance(question, str) else question
    several = isinstance(asked, (list, tuple)) and len(asked) == batch
    if not several or not all(isinstance(text, str) for text in asked):
        raise InvalidInputs(f"question={question!r}: allowed is a text, or one per row ({batch})")
    if broken := next((text for text in asked if not is_unicode(text)), None):
        raise InvalidInputs(f"question={broken!r}: allowed is text without lone surrogates")
    return list(asked)


def is_unicode(text: str) -> bool:
    """Whether a tokenizer can read the text: half of a pair of surrogates is no character."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def questions(
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Sequence[int]],
    skip: Collection[int],
    template: str | None = None,
) -> list[str]:
    """The question of each row: the user's last turn, without what the template and the processor write.

    Turns are told by the chat template. Without one they are told by known marks in the text. A prompt without
    turns is the question as a whole.

    Args:
        tokenizer: the model's.
        rows: ids of each prompt, without padding.
        skip: ids that stand for images and videos.
        template: the chat template that wrote the prompts; None for the tokenizer's.
    """
    found = []
    for row in rows:
        prompt, turns = _turns(tokenizer, row, skip, template)
        found.append(_said(tokenizer, prompt, turns[-1]) if turns else "")
    return found


def question_at(
    tokenizer: "PreTrainedTokenizerBase",
    row: Sequence[int],
    skip: Collection[int],
    images: int,
    template: str | None = None,
) -> list[str]:
    """The question of each image: the text of the user's turn that holds it, else of the next one with text.

    Unlike the last turn's, it stays the same while a conversation goes on. An image before the user's first turn
    counts to that.

    Args:
        tokenizer: the model's.
        row: ids of one prompt.
        skip: ids that stand for images, each one for one image.
        images: how many there are; those that the prompt lacks get the first turn's question.
        template: as `questions`'.
    """
    prompt, turns = _turns(tokenizer, row, skip, template)
    texts = [_said(tokenizer, prompt, turn) for turn in turns]
    found = []
    for place in [*(mark.start() for mark in re.finditer(SKIPPED, prompt)), *[0] * images][:images]:
        later = (text for text, (_, end) in zip(texts, turns, strict=True) if end > place)
        found.append(next(filter(None, later), ""))
    return found


def _turns(
    tokenizer: "PreTrainedTokenizerBase", row: Sequence[int], skip: Collection[int], template: str | None
) -> tuple[str, list[tuple[int, int]]]:
    """A prompt as a flat text, and the places of the user's turns in it."""
    prompt = flat(tokenizer, row, skip)
    template = template or template_of(tokenizer)
    written = turns_of(tokenizer, template) if template else None
    if written is None:
        return prompt, _known_turns(prompt, alphabet_of(tokenizer))
    prompt = " ".join(prompt.split())
    turns = written.of_user(prompt)
    return prompt, [(0, len(prompt))] if turns is None else turns


def _known_turns(prompt: str, alphabet: Alphabet) -> list[tuple[int, int]]:
    """`user_turns` of a flat text, whose marks are spelled for it."""
    spelled = [alphabet.spelled.get(letter, letter) for letter in prompt]
    starts = list(accumulate(map(len, spelled), initial=0))
    return [
        (bisect_left(starts, start), bisect_right(starts, end) - 1) for start, end in user_turns("".join(spelled))
    ]


def _said(tokenizer: "PreTrainedTokenizerBase", prompt: str, turn: tuple[int, int]) -> str:
    return alphabet_of(tokenizer).plain(WRITTEN.sub(" ", prompt[slice(*turn)]))
