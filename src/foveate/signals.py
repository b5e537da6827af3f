"""Which signals a method can have here, and the text ones added to the encoded images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from foveate.encode import Encoded, placeholders
from foveate.errors import MissingSignal, UnsupportedModel
from foveate.families import Family
from foveate.methods.base import Method
from foveate.relevance import clip_for, clip_relevance, noun_embeddings, questions_of, tokenizer_for
from foveate.tokens import Signal

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedModel, PreTrainedTokenizerBase

# The signals that come from the prompt's text.
TEXT = {Signal.QUESTION, Signal.CLIP_RELEVANCE}

HINTS = {
    Signal.QUESTION: "the question's text: pass processor=, no tokenizer lies beside the checkpoint",
    Signal.CLIP_RELEVANCE: "a CLIP text tower: pass clip= (a CLIPModel, path or id), none is at the checkpoint",
    Signal.CLS_ATTENTION: "CLS attention: the vision tower has no CLS token",
    Signal.RECEIVED_ATTENTION: "the vision tower's attention: where it is is not known of this family",
    Signal.PATCHES: "states before the projector: it takes several patches per token here, or tiles cut later",
    Signal.KEYS: "the vision tower's keys: where its attention is is not known of this family",
    Signal.JOINT_ATTENTION: "CLS attention: the vision tower has no CLS token",
}


@dataclass(frozen=True)
class Source:
    """A method settled for the signals to be had here, and what its text signals are computed with.

    Attributes:
        asked: the method as the caller gave it.
        method: the same with its ``auto`` options decided.
        tokenizer: None where the method asks for no text, or none is to be had.
        clip: likewise, where it asks for no CLIP relevance.
    """

    asked: Method
    method: Method
    tokenizer: "PreTrainedTokenizerBase | None"
    clip: "CLIPModel | None"

    @classmethod
    def find(
        cls,
        model: "PreTrainedModel",
        family: Family,
        method: Method,
        processor: Any,
        clip: "CLIPModel | str | Path | None",
    ) -> "Source":
        """Look for the tokenizer and the CLIP pair where the method asks for text.

        Raises:
            MissingSignal: a needed signal is not to be had.
            UnsupportedModel: a CLIP pair is given that cannot be used.
        """
        asked = method.needs | method.wants
        tokenizer = tokenizer_for(model, processor) if asked & TEXT else None
        patches = family.projector(model) is not None
        if clip is not None and not patches and Signal.CLIP_RELEVANCE in asked:
            raise UnsupportedModel(f"clip={clip!r} with {family.name}: supported is llava with a CLIP tower")
        pair = clip_for(model, clip) if Signal.CLIP_RELEVANCE in asked and patches else None
        tapped = all(family.attention(model, kind) is not None for kind in family.kinds)
        has = {
            Signal.CLS_ATTENTION: tapped and family.has_cls(model),
            Signal.RECEIVED_ATTENTION: tapped,
            Signal.QUESTION: tokenizer is not None,
            Signal.CLIP_RELEVANCE: tokenizer is not None and pair is not None,
            Signal.PATCHES: patches,
            Signal.KEYS: tapped,
            Signal.JOINT_ATTENTION: tapped and family.has_cls(model),
        }
        settled = method.settled(frozenset(signal for signal in Signal if has[signal]))
        for signal in Signal:
            if signal in settled.needs and not has[signal]:
                raise MissingSignal(f"{type(method).__name__} needs {HINTS[signal]}")
        return cls(method, settled, tokenizer, pair)


def add_text(
    model: "PreTrainedModel",
    family: Family,
    prompt: dict[str, Any],
    encoded: Encoded,
    sources: Sequence[Source],
    question: str | Sequence[str] | None,
) -> tuple[Encoded, str | None]:
    """``encoded`` with the text signals that any of the methods needs, and the tagger used for the nouns.

    Args:
        model: for its embeddings.
        family: for the placeholders.
        prompt: the processor's output.
        encoded: one entry per image.
        sources: of one model, processor and CLIP pair.
        question: as `prune`'s.
    """
    asking = [source for source in sources if source.method.needs & TEXT and source.tokenizer is not None]
    if not asking:
        return encoded, None
    tokenizer = cast("PreTrainedTokenizerBase", asking[0].tokenizer)
    needs = frozenset(signal for source in asking for signal in source.method.needs)
    clip = next((source.clip for source in asking if Signal.CLIP_RELEVANCE in source.method.needs), None)
    stands = placeholders(model, family, prompt["input_ids"])
    questions = questions_of(prompt, stands, tokenizer, question)
    asked = set(encoded.rows) if Signal.QUESTION in needs else set()
    nouns = {row: noun_embeddings(model, tokenizer, questions[row]) for row in asked}
    images = list(encoded.images)
    for index, row in enumerate(encoded.rows):
        if row in nouns:
            images[index] = replace(images[index], question=nouns[row][0])
        if clip is not None and encoded.patches is not None:
            likeness = clip_relevance(clip, encoded.patches[index], questions[row])
            images[index] = replace(images[index], clip_relevance=likeness.to(images[index].features.device))
    taggers = {tagger for _, tagger in nouns.values()}
    return replace(encoded, images=images), ", ".join(sorted(taggers)) or None
