"""The text signals: the question's nouns in the language model's space, and its likeness in CLIP's."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from foveate.errors import InvalidInputs, InvalidOption, MissingSignal
from foveate.question import nouns_of, question_of

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedModel, PreTrainedTokenizerBase


def tokenizer_for(model: "PreTrainedModel", processor: Any) -> "PreTrainedTokenizerBase | None":
    """The processor's tokenizer (or the tokenizer itself), else that beside the model's checkpoint.

    Raises:
        InvalidOption: ``processor`` is neither.
        MissingSignal: the tokenizer cannot tell where in the text its tokens are.
    """
    if processor is None:
        tokenizer = _tokenizer_at(model.name_or_path)
    else:
        tokenizer = getattr(processor, "tokenizer", processor)
        if not hasattr(tokenizer, "all_special_tokens"):
            raise InvalidOption(
                f"processor of type {type(processor).__name__}: allowed are the model's processor or its tokenizer"
            )
    if tokenizer is not None and not tokenizer.is_fast:
        raise MissingSignal(f"{type(tokenizer).__name__} gives no token offsets: a fast tokenizer is needed")
    return tokenizer


def clip_for(model: "PreTrainedModel", clip: "CLIPModel | str | Path | None") -> "CLIPModel | None":
    """The CLIP pair of the vision tower: as given, loaded from a path or id, or found beside the checkpoint.

    A folder ``clip`` in the checkpoint's folder counts as beside it.

    Raises:
        InvalidOption: ``clip`` is none of these.
        MissingSignal: none can be loaded, it has no tokenizer, or it is not this vision tower's.
    """
    if clip is None:
        beside = Path(model.name_or_path) / "clip"
        if not (beside / "config.json").is_file():
            return None
        clip = beside
    from transformers import CLIPModel

    if not isinstance(clip, (str, Path, CLIPModel)):
        raise InvalidOption(f"clip={clip!r}: allowed are a CLIPModel, a path or an id")
    pair = _load_clip(str(clip), str(_device(model))) if isinstance(clip, (str, Path)) else clip
    width, own = pair.config.vision_config.hidden_size, model.config.vision_config.hidden_size
    if width != own:
        raise MissingSignal(f"CLIP of width {width}: allowed is the vision tower's own pair, of width {own}")
    if _tokenizer_at(pair.name_or_path) is None:
        raise MissingSignal(f"no tokenizer beside the CLIP model {pair.name_or_path!r}: save it there")
    return pair


def questions_of(
    inputs: dict[str, Any],
    placeholders: Tensor,
    tokenizer: "PreTrainedTokenizerBase",
    question: str | Sequence[str] | None,
) -> list[str]:
    """One question per row: as given, else the last user turn of the prompt without template text.

    Raises:
        InvalidInputs: a list of questions whose length is not the batch's.
    """
    input_ids: Tensor = inputs["input_ids"]
    if isinstance(question, str):
        return [question] * len(input_ids)
    if question is not None:
        several = isinstance(question, (list, tuple)) and len(question) == len(input_ids)
        if not several or not all(isinstance(text, str) for text in question):
            raise InvalidInputs(f"question={question!r}: allowed is a text, or one per row ({len(input_ids)})")
        return list(question)
    shown = ~placeholders
    if inputs.get("attention_mask") is not None:
        shown &= inputs["attention_mask"].bool()
    special = special_tokens(tokenizer)
    return [
        question_of(str(tokenizer.decode(row[mask], skip_special_tokens=False)), special)
        for row, mask in zip(input_ids, shown, strict=True)
    ]


def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """All special tokens that a prompt may hold, as text."""
    # Beside those that the configuration names: Idefics3's marks of rows and columns are such.
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted({*map(str, tokenizer.all_special_tokens), *added})


def noun_ids(tokenizer: "PreTrainedTokenizerBase", question: str) -> tuple[list[int], str]:
    """The ids of the tokens of the question's nouns, and the tagger that found them."""
    nouns = nouns_of(question)
    encoding = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)
    ids = [
        token
        for token, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
        if any(start < stop and begin < end for begin, stop in nouns.spans)
    ]
    return ids, nouns.tagger


def noun_embeddings(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", question: str
) -> tuple[Tensor, str]:
    """Input embeddings ``[M, D]`` of the tokens of the question's nouns, and the tagger that found them."""
    ids, tagger = noun_ids(tokenizer, question)
    embeddings = model.get_input_embeddings()
    with torch.no_grad():
        rows: Tensor = embeddings(torch.tensor(ids, dtype=torch.long, device=_device(model)))
    return rows, tagger


@torch.no_grad()
def clip_relevance(clip: "CLIPModel", patches: Tensor, question: str) -> Tensor:
    """Cosine ``[N]`` of each projected CLIP patch with the question's CLIP embedding; empty without a question.

    A question longer than CLIP's context is cut into windows whose cosines are averaged.

    Args:
        clip: the pair the vision tower comes from.
        patches: ``[N, Dv]`` patch states of the layer the language model reads.
        question: plain text.

    Source: CDPruner's code (post-layernorm and projection of the selected layer), in float32.
    """
    if not question:
        return patches.new_empty(0, dtype=torch.float32)
    text = _clip_text(clip, question)
    patches = patches.to(clip.device, clip.dtype)
    embeddings = clip.visual_projection(clip.vision_model.post_layernorm(patches))
    cosines = normalize(embeddings.float(), dim=-1) @ normalize(text.float(), dim=-1).T
    return cosines.mean(dim=1)


def _device(model: "PreTrainedModel") -> torch.device:
    """Where inputs may be: accelerate leaves only the shapes of offloaded weights, and moves inputs."""
    return torch.device("cpu") if model.device.type == "meta" else model.device


def _clip_text(clip: "CLIPModel", question: str) -> Tensor:
    tokenizer = _load_tokenizer(clip.name_or_path)
    windows = tokenizer(
        question,
        truncation=True,
        max_length=clip.config.text_config.max_position_embeddings,
        return_overflowing_tokens=True,
        padding=True,
        return_tensors="pt",
    ).to(clip.device)
    features = clip.get_text_features(windows["input_ids"], attention_mask=windows["attention_mask"])
    embeddings: Tensor = getattr(features, "pooler_output", features)  # an output object since 5.0
    return embeddings


def _tokenizer_at(path: str) -> "PreTrainedTokenizerBase | None":
    try:
        return _load_tokenizer(path) if path else None
    except (OSError, ValueError):  # a model built from its config has none
        return None


@lru_cache(maxsize=8)
def _load_tokenizer(path: str) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    return tokenizer


@lru_cache(maxsize=4)
def _load_clip(path: str, device: str) -> "CLIPModel":
    from transformers import CLIPModel

    try:
        clip: CLIPModel = CLIPModel.from_pretrained(path, dtype=torch.float32).eval().to(device)
    except (OSError, ValueError) as error:
        raise MissingSignal(f"clip={path!r}: no CLIP model can be loaded from there") from error
    clip.vision_model.encoder = torch.nn.Identity()  # the VLM's own tower does its work
    return clip
