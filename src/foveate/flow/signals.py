"""Which signals a method can have here, and the text ones of a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveate.errors import MissingSignal, UnsupportedModel
from foveate.families import Family
from foveate.flow.prompt import Prompt, placeholder_ids
from foveate.methods.base import Method
from foveate.text.clip import clip_for, text_embedding
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
    Signal.RECEIVED_ATTENTION: "the vision tower's attention: this family does not say which layer holds it",
    Signal.PATCHES: "states before the projector: it takes several patches per token here, or tiles cut later",
    Signal.KEYS: "the vision tower's keys: this family does not say which layer holds its attention",
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


@dataclass(frozen=True, eq=False)
class Text:
    """What is asked, once per distinct question.

    Attributes:
        which: of each batch row, the number of its question.
        nouns: ``[Q, M, D]`` input embeddings of the nouns, padded to the longest; None if not asked for.
        real: ``[Q, M]`` bool, those that are no padding; None where all are.
        directions: ``[Q, D]`` in CLIP's space, zeros for an empty question; None unless asked for.
        clip: the pair that has that space, or None.
        tagger: what found the nouns, or None.
    """

    which: list[int]
    nouns: Tensor | None
    real: Tensor | None
    directions: Tensor | None
    clip: "CLIPModel | None"
    tagger: str | None

    @classmethod
    def read(
        cls,
        model: "PreTrainedModel",
        family: Family,
        prompt: Prompt,
        sources: Sequence[Source],
        question: str | Sequence[str] | None,
    ) -> "Text | None":
        """The text signals that any of the methods needs; None where none needs any.

        Args:
            model: for its embeddings.
            family: for the placeholders.
            prompt: the prompt.
            sources: of one model, processor and CLIP pair.
            question: as `prune`'s.
        """
        needs = frozenset(signal for source in sources for signal in source.method.needs) & TEXT
        tokenizer = next((source.tokenizer for source in sources if source.tokenizer is not None), None)
        if not needs or tokenizer is None:
            return None
        asked = given(question, len(prompt.ids))
        if asked is None:
            rows = [ids[attended].tolist() for ids, attended in zip(prompt.ids, prompt.attended, strict=True)]
            asked = questions(tokenizer, rows, placeholder_ids(model, family), sources[0].template)
        distinct = list(dict.fromkeys(asked))
        which = [distinct.index(text) for text in asked]
        nouns, real, tagger = None, None, None
        if Signal.QUESTION in needs:
            found = [noun_ids(tokenizer, text) for text in distinct]
            nouns, real = embedded(model, [ids for ids, _ in found], prompt.device)
            tagger = ", ".join(sorted({tagger for _, tagger in found}))
        clip = next((source.clip for source in sources if source.clip is not None), None)
        directions = None
        if Signal.CLIP_RELEVANCE in needs and clip is not None:
            directions = _directions(clip, distinct)
        return cls(which, nouns, real, directions, clip, tagger)


def embedded(
    model: "PreTrainedModel", words: Sequence[Sequence[int]], device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """``[Q, M, D]`` input embeddings of lists of ids, and ``[Q, M]`` bool, those that are real; None for all."""
    lengths = torch.tensor([len(ids) for ids in words])
    longest = int(lengths.max())
    padded = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in words], dtype=torch.long)
    with torch.no_grad():
        rows: Tensor = model.get_input_embeddings()(padded.to(device))
    real = torch.arange(longest) < lengths[:, None]
    return rows, None if bool(real.all()) else real.to(device)


def _directions(clip: "CLIPModel", texts: Sequence[str]) -> Tensor:
    width = clip.config.projection_dim
    empty = torch.zeros(width, device=clip.device)
    return torch.stack([text_embedding(clip, text) if text else empty for text in texts])
