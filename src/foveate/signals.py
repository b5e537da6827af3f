"""Which signals a method can have here, and the text ones added to the encoded images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from foveate.encode import Encoded, placeholders
from foveate.errors import MissingSignal, UnsupportedModel
from foveate.families import Family
from foveate.methods.base import Method
from foveate.text.clip import clip_for, clip_relevance, text_embedding
from foveate.text.nouns import noun_ids
from foveate.text.question import given, questions
from foveate.text.tokenizer import template_of, tokenizer_for
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
        template: the chat template of the prompts; None for the tokenizer's.
    """

    asked: Method
    method: Method
    tokenizer: "PreTrainedTokenizerBase | None"
    clip: "CLIPModel | None"
    template: str | None = None

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
        return cls(method, settled, tokenizer, pair, template_of(processor))


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
    asked = given(question, len(prompt["input_ids"])) or _asked(model, family, prompt, asking[0])
    device = encoded.images[0].features.device if encoded.images else model.device
    nouns, embeddings = {}, {}
    for text in {asked[row] for row in encoded.rows}:
        if Signal.QUESTION in needs:
            nouns[text] = noun_ids(tokenizer, text)
        if clip is not None and text:
            embeddings[text] = text_embedding(clip, text)
    rows = {text: noun_embeddings(model, ids) for text, (ids, _) in nouns.items()}
    images = list(encoded.images)
    for index, row in enumerate(encoded.rows):
        text = asked[row]
        if text in rows:
            images[index] = replace(images[index], question=rows[text])
        if clip is not None and encoded.patches is not None:
            patches = encoded.patches[index]
            likeness = (
                clip_relevance(clip, patches, embeddings[text])
                if text
                else patches.new_empty(0, dtype=torch.float32)
            )
            images[index] = replace(images[index], clip_relevance=likeness.to(device))
    taggers = {tagger for _, tagger in nouns.values()}
    return replace(encoded, images=images), ", ".join(sorted(taggers)) or None


@torch.no_grad()
def noun_embeddings(model: "PreTrainedModel", ids: Sequence[int]) -> Tensor:
    """Input embeddings ``[M, D]`` of the tokens of a question's nouns."""
    device = torch.device("cpu") if model.device.type == "meta" else model.device  # accelerate moves inputs
    rows: Tensor = model.get_input_embeddings()(torch.tensor(ids, dtype=torch.long, device=device))
    return rows


def _asked(model: "PreTrainedModel", family: Family, prompt: dict[str, Any], source: Source) -> list[str]:
    """The question in each row of the prompt."""
    ids: Tensor = prompt["input_ids"]
    shown = prompt.get("attention_mask")
    real = torch.ones_like(ids, dtype=torch.bool) if shown is None else shown.bool()
    rows = [row[mask].tolist() for row, mask in zip(ids, real, strict=True)]
    skip = set(ids[placeholders(model, family, ids)].tolist())
    return questions(cast("PreTrainedTokenizerBase", source.tokenizer), rows, skip, source.template)
