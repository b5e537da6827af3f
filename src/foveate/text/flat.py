"""A prompt's ids as one text, in which each token that a tokenizer holds whole is one character.

Text that only looks like a special token can then never be taken for one.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from foveate.text.memory import remembered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Characters of Unicode's private planes 15 and 16, which stand for tokens here and are in no text.
SKIPPED = "\U000f0000"
FIRST, MOST = 0x100000, 0xFFFE
MARK = "[\U000f0000-\U0010ffff]"
_MARK = re.compile(MARK)


@dataclass(frozen=True)
class Alphabet:
    """The characters that stand for a tokenizer's special and added tokens.

    Attributes:
        marks: the character of each of these tokens, by id.
        spelled: the token of each character.
        special: the characters of special tokens, which no user types.
    """

    marks: dict[int, str]
    spelled: dict[str, str]
    special: frozenset[str]

    def plain(self, flat: str) -> str:
        """A flat text as people read it: without special tokens, with one space between words."""

        def written(mark: re.Match[str]) -> str:
            return " " if mark.group() in self.special else self.spelled.get(mark.group(), " ")

        return " ".join(_MARK.sub(written, flat).split())


@remembered(last=1)
def _alphabet(tokenizer: "PreTrainedTokenizerBase", size: int) -> Alphabet:
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(token for token, entry in added.items() if entry.special)}
    # Runs of blanks are added tokens of some vocabularies, and nothing but text.
    words = {token for token, entry in added.items() if entry.content.strip(" \t\n\r▁")}
    marks = {token: chr(FIRST + number) for number, token in enumerate(sorted(special | words)[:MOST])}
    spelled = {mark: str(tokenizer.convert_ids_to_tokens(token)) for token, mark in marks.items()}
    return Alphabet(marks, spelled, frozenset(mark for token, mark in marks.items() if token in special))


def alphabet_of(tokenizer: "PreTrainedTokenizerBase") -> Alphabet:
    """The tokenizer's alphabet, worked out once as long as its vocabulary does not grow."""
    return _alphabet(tokenizer, len(tokenizer))


def flat(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], skip: Collection[int] = ()) -> str:
    """The text of ``ids``, special and added tokens as one character each, those in ``skip`` as `SKIPPED`."""
    marks = alphabet_of(tokenizer).marks
    skipped = dict.fromkeys(skip, SKIPPED)
    known: dict[tuple[int, ...], str] = {}
    parts: list[str] = []
    for single, run in groupby(ids, lambda token: token in skipped or token in marks):
        if single:
            parts.extend(skipped.get(token) or marks[token] for token in run)
            continue
        words = tuple(run)
        if words not in known:
            text = str(tokenizer.decode(list(words), clean_up_tokenization_spaces=False))
            known[words] = _MARK.sub("\N{REPLACEMENT CHARACTER}", text)
        parts.append(known[words])
    return "".join(parts)


def flat_text(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    """`flat` of a text: as a prompt that holds it would be read."""
    return flat(tokenizer, tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
