"""Which signals a method can have here, and the text ones added to the encoded images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.encode import Encoded, image_token_id
from foveate.errors import MissingSignal
from foveate.families import family_of
from foveate.methods.base import Method
from foveate.relevance import clip_for, clip_relevance, noun_embeddings, questions_of, tokenizer_for
from foveate.tokens import Signal

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedModel, PreTrainedTokenizerBase

# The text signals, and the space each is measured in.
SPACES = {Signal.QUESTION: "llm", Signal.CLIP_RELEVANCE: "clip"}

HINTS = {
    Signal.QUESTION: "the question's text: pass processor=, no tokenizer lies beside the checkpoint",
    Signal.CLIP_RELEVANCE: "a CLIP text tower: pass clip= (a CLIPModel, path or id), none is at the checkpoint",
    Signal.CLS_ATTENTION: "CLS attention: the vision tower has no CLS token",
}


@dataclass(frozen=True)
class TextSource:
    """What the text signals of a method are computed with, found before any work."""

    tokenizer: "PreTrainedTokenizerBase | None"
    clip: "CLIPModel | None"

    @classmethod
    def find(
        cls, model: "PreTrainedModel", method: Method, processor: Any, clip: "CLIPModel | str | Path | None"
    ) -> "TextSource":
        """Look for the tokenizer and the CLIP pair where the method asks for text.

        Raises:
            MissingSignal: a needed one is not to be had.
        """
        asked = method.needs | method.wants
        wants_text = bool(asked & SPACES.keys())
        source = cls(
            tokenizer_for(model, processor) if wants_text else None,
            clip_for(model, clip) if Signal.CLIP_RELEVANCE in asked else None,
        )
        missing = source.missing | cls._without_cls(model, asked)
        for signal in sorted(method.needs & missing, key=lambda signal: signal.value):
            raise MissingSignal(f"{type(method).__name__} needs {HINTS[signal]}")
        return source

    @property
    def missing(self) -> frozenset[Signal]:
        """The text signals that cannot be computed."""
        gone = set()
        if self.tokenizer is None:
            gone.add(Signal.QUESTION)
        if self.clip is None or self.tokenizer is None:
            gone.add(Signal.CLIP_RELEVANCE)
        return frozenset(gone)

    def add_signals(
        self,
        model: "PreTrainedModel",
        prompt: dict[str, Any],
        encoded: Encoded,
        signals: frozenset[Signal],
        question: str | Sequence[str] | None,
    ) -> tuple[Encoded, str | None]:
        """``encoded`` with the text signals asked for, and the tagger used."""
        if self.tokenizer is None or not signals & SPACES.keys():
            return encoded, None
        questions = questions_of(prompt, image_token_id(model), self.tokenizer, question)
        nouns = {}
        if Signal.QUESTION in signals:
            nouns = {row: noun_embeddings(model, self.tokenizer, questions[row]) for row in set(encoded.rows)}
        images = []
        for index, (tokens, row) in enumerate(zip(encoded.images, encoded.rows, strict=True)):
            likeness = None
            if self.clip is not None and encoded.patches is not None:
                likeness = clip_relevance(self.clip, encoded.patches[index], questions[row])
                likeness = likeness.to(tokens.features.device)
            embeddings = nouns[row][0] if row in nouns else None
            images.append(replace(tokens, question=embeddings, clip_relevance=likeness))
        taggers = sorted({tagger for _, tagger in nouns.values()})
        return replace(encoded, images=images), ", ".join(taggers) or None

    @staticmethod
    def _without_cls(model: "PreTrainedModel", asked: frozenset[Signal]) -> frozenset[Signal]:
        absent = Signal.CLS_ATTENTION in asked and family_of(model).cls_layer(model) is None
        return frozenset({Signal.CLS_ATTENTION} if absent else ())
