"""From a prompt to the question in it, and from the question to its nouns."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

# Chat templates mark turns in these ways: ChatML (Qwen), Llama 3, Gemma, Gemma 4, Phi and GLM, Llama 2 and
# Mistral, Vicuna (LLaVA), Idefics. Role names in mixed case count at the start of a line only, where a user would
# hardly write one.
USER_TURN = re.compile(
    r"<\|im_start\|>user\b|<\|start_header_id\|>user<\|end_header_id\|>|<start_of_turn>user\b|<\|turn>user\b|<\|user\|>"
    r"|\[INST\]|\bUSER:|(?:^|\n|>|#{2,3})[ \t]*(?:Human|User):"
)
TURN_END = re.compile(
    r"<\|im_end\|>|<\|eot_id\|>|<end_of_turn>|<turn\|>|<end_of_utterance>|<\|end\|>|<\|assistant\|>"
    r"|\[/INST\]|(?:#{2,3}[ \t]*)?\bASSISTANT:|(?:^|\n|#{2,3})[ \t]*Assistant:|\bAssistant:\s*$"
)
SYSTEM = re.compile(r"<<SYS>>.*?<</SYS>>", re.DOTALL)
# What processors write around images and frames, in plain text: Qwen3-VL's times, Gemma 3's pan-and-scan.
WRITTEN = re.compile(
    r"<\d+\.\d seconds>|Here is the original image and here are some crops to help you see better"
)

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d+")
# Words that carry no content of their own; for where no tagger is installed or no noun is found.
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
        spans: their ``(start, end)`` in the question.
        tagger: what found them: ``spacy``, ``hanta``, or ``content words``.
    """

    spans: tuple[tuple[int, int], ...]
    tagger: str


def question_of(prompt: str, special_tokens: list[str]) -> str:
    """The last user turn of a decoded prompt, without template text, roles and special tokens."""
    turn = USER_TURN.split(SYSTEM.sub(" ", prompt))[-1]
    turn = TURN_END.split(turn)[0]
    for token in sorted(special_tokens, key=len, reverse=True):
        turn = turn.replace(token, " ")
    return " ".join(WRITTEN.sub(" ", " ".join(turn.split())).split())


def question_at(prompt: str, place: int, special_tokens: list[str]) -> str:
    """The text of the user turn that holds character ``place`` of a prompt; if it has none, the next with text.

    Unlike `question_of`, it stays the same while a conversation goes on. A prompt without marks of turns is one.
    """
    _, *later = [turn.start() for turn in USER_TURN.finditer(prompt)] or [0]  # before the first speaks the system
    for stop in [*(start for start in later if start > place), len(prompt)]:
        question = question_of(prompt[:stop], special_tokens)
        if question:
            return question
    return ""


def nouns_of(question: str) -> Nouns:
    """The nouns of a question, by the best tagger installed; without a noun, its content words.

    spaCy with en_core_web_sm (ResPrune's choice), else HanTa; both come with ``foveate[nouns]``, the
    first needs ``python -m spacy download en_core_web_sm`` besides. Without either, content words.
    """
    tagger, spans_of = _tagger()
    spans = tuple(span for span in spans_of(question) if WORD.search(question[slice(*span)]))
    return Nouns(spans, tagger) if spans else Nouns(_content_words(question), "content words")


Spans = tuple[tuple[int, int], ...]


@cache
def _tagger() -> tuple[str, Callable[[str], Spans]]:
    for name, load in TAGGERS.items():
        try:
            return name, load()
        except (ImportError, OSError):  # not installed; spaCy raises OSError for an absent model
            continue
    raise AssertionError("the last tagger needs nothing")


def _spacy() -> Callable[[str], Spans]:
    import spacy

    pipeline = spacy.load("en_core_web_sm", exclude=["parser", "ner", "lemmatizer"])
    return lambda text: tuple(
        (token.idx, token.idx + len(token)) for token in pipeline(text) if token.pos_ in ("NOUN", "PROPN")
    )


def _hanta() -> Callable[[str], Spans]:
    from HanTa.HanoverTagger import HanoverTagger

    tagger = HanoverTagger("morphmodel_en.pgz")

    def spans_of(text: str) -> Spans:
        words = list(re.finditer(rf"{WORD.pattern}|[^\w\s]", text))
        tags = tagger.tag_sent([word.group() for word in words]) if words else []
        # The British National Corpus's tags: NN0, NN1, NN2 are common nouns, NP0 proper ones.
        return tuple(word.span() for word, (_, _, tag) in zip(words, tags, strict=True) if tag.startswith("N"))

    return spans_of


def _content_words(text: str) -> Spans:
    return tuple(word.span() for word in WORD.finditer(text) if word.group().lower() not in FUNCTION_WORDS)


TAGGERS: dict[str, Callable[[], Callable[[str], Spans]]] = {
    "spacy": _spacy,
    "hanta": _hanta,
    "content words": lambda: _content_words,
}
