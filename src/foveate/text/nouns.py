"""From a question to its nouns, and to their tokens."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import regex

from foveate.text.memory import remembered
from foveate.text.untouched import untouched

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]

# By Unicode's properties: a letter goes on with combining marks and joiners, and over signs within words.
LETTERS = r"\p{L}[\p{L}\p{M}\u200c\u200d]*+"
WORD = regex.compile(rf"{LETTERS}(?:['’·׳״-]{LETTERS})*+|\p{{N}}++")
PUNCTUATION = r"[^\w\s]"
# The taggers know English, which is written in Latin letters.
FOREIGN = regex.compile(r"(?V1)[\p{L}--[\p{Latin}\p{Common}\p{Inherited}]]")
# Longer questions are not tagged: HanTa takes half a millisecond per word.
TAGGED = 1000
# English words that carry no content of their own; for where no tagger is installed or no noun is found.
FUNCTION_WORDS = frozenset(
    WORD.findall(
        """a about above all also am an and any are around as at be because been before behind being below
    beside between both but by can could did do does doing each either every few for from had has have
    he her here hers him his how i if in inside into is it its just many may me might more most much
    must my near neither next no nor not of off on one onto or other our out outside over please same
    shall she should so some such than that the their them then there these they this those through to
    too under up upon us very was we were what when where whether which while who whom whose why will
    with would you your yes"""
    )
)


@dataclass(frozen=True)
class Nouns:
    """The words of a question that name something.

    Attributes:
        spans: their ``(start, end)`` in the question, in order.
        tagger: what found them: ``spacy``, ``hanta``, or ``content words``.
    """

    spans: tuple[Span, ...]
    tagger: str


def nouns_of(question: str) -> Nouns:
    """The nouns of a question, by the best tagger installed; without a noun, its content words.

    spaCy with en_core_web_sm (ResPrune's choice), else HanTa; both come with ``foveate[nouns]``, the
    first needs ``python -m spacy download en_core_web_sm`` besides. Without either, content words.

    Content words are all words but the function words of English. They are also taken of questions with letters of
    other scripts than Latin, because both taggers know English alone, and of questions of more than 1,000
    characters, because tagging them takes longer than pruning. A run of a script that has no spaces between words
    is one word here, so all of the tokenizer's pieces of it count.
    """
    if len(question) > TAGGED or FOREIGN.search(question):
        return Nouns(_content_words(question), "content words")
    tagger, spans_of = _tagger()
    spans = tuple(span for span in spans_of(question) if WORD.search(question[slice(*span)]))
    return Nouns(spans, tagger) if spans else Nouns(_content_words(question), "content words")


@remembered(last=64)
def noun_ids(tokenizer: "PreTrainedTokenizerBase", question: str) -> tuple[tuple[int, ...], str]:
    """The ids of the tokens of the question's nouns, and the tagger that found them.

    Each tokenizer's last 64 questions are remembered.
    """
    nouns = nouns_of(question)
    encoding = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids: list[int] = encoding["input_ids"]
    return tuple(ids[index] for index in overlapping(encoding["offset_mapping"], nouns.spans)), nouns.tagger


def overlapping(offsets: Sequence[Span], spans: Sequence[Span]) -> Iterator[int]:
    """The indices of the ``offsets`` that overlap one of the ``spans``, in one sweep over both.

    Args:
        offsets: ``(start, end)`` of tokens, in order of their starts.
        spans: of words, in order, none over another.
    """
    span = 0
    for index, (start, end) in enumerate(offsets):
        while span < len(spans) and spans[span][1] <= start:
            span += 1
        if span < len(spans) and spans[span][0] < end:
            yield index


Tagger = Callable[[str], tuple[Span, ...]]


@cache
def _tagger() -> tuple[str, Tagger]:
    for name, load in TAGGERS.items():
        try:
            with untouched():
                return name, load()
        except (ImportError, OSError):  # not installed; spaCy raises OSError for an absent model
            continue
    raise AssertionError("the last tagger needs nothing")


def _spacy() -> Tagger:
    if find_spec("en_core_web_sm") is None:  # spaCy without its model takes a second to import, for nothing
        raise ImportError("en_core_web_sm")
    import spacy

    pipeline = spacy.load("en_core_web_sm", exclude=["parser", "ner", "lemmatizer"])
    return lambda text: tuple(
        (token.idx, token.idx + len(token)) for token in pipeline(text) if token.pos_ in ("NOUN", "PROPN")
    )


def _hanta() -> Tagger:
    from HanTa.HanoverTagger import HanoverTagger

    tagger = HanoverTagger("morphmodel_en.pgz")

    def spans_of(text: str) -> tuple[Span, ...]:
        words = list(regex.finditer(rf"{WORD.pattern}|{PUNCTUATION}", text))
        tags = tagger.tag_sent([word.group() for word in words]) if words else []
        # The British National Corpus's tags: NN0, NN1, NN2 are common nouns, NP0 proper ones.
        return tuple(word.span() for word, (_, _, tag) in zip(words, tags, strict=True) if tag.startswith("N"))

    return spans_of


def _content_words(text: str) -> tuple[Span, ...]:
    return tuple(word.span() for word in WORD.finditer(text) if word.group().lower() not in FUNCTION_WORDS)


TAGGERS: dict[str, Callable[[], Tagger]] = {
    "spacy": _spacy,
    "hanta": _hanta,
    "content words": lambda: _content_words,
}
