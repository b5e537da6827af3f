"""The question's likeness to an image's patches, in the space of the CLIP pair of the vision tower."""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from foveate.errors import InvalidOption, MissingSignal
from foveate.hf import names
from foveate.text.memory import remembered
from foveate.text.tokenizer import tokenizer_at

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedModel


def clip_for(model: "PreTrainedModel", clip: "CLIPModel | str | Path | None") -> "CLIPModel | None":
    """The CLIP pair of the vision tower: as given, loaded from a path or id, or found beside the checkpoint.

    A folder ``clip`` in the checkpoint's folder counts as beside it. What is loaded is loaded once.

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
    width, expected = pair.config.vision_config.hidden_size, model.config.vision_config.hidden_size
    if width != expected:
        raise MissingSignal(f"CLIP of width {width}: allowed is the vision tower's own pair, of width {expected}")
    if tokenizer_at(pair.name_or_path) is None:
        raise MissingSignal(f"no tokenizer beside the CLIP model {pair.name_or_path!r}: save it there")
    return pair


def text_embedding(clip: "CLIPModel", question: str) -> Tensor:
    """The direction ``[D]`` of a question in CLIP's space, float32, on the model's device.

    A question longer than CLIP's context is cut into windows. The result is the mean of their unit vectors, so its
    product with a unit vector is the mean of the windows' cosines. The text tower runs once per question: each
    model's last 16 are remembered.

    Args:
        clip: a model with its tokenizer beside it.
        question: plain text, not empty.
    """
    return _text_embedding(clip, (question, clip.device, clip.dtype))


@torch.no_grad()
def clip_relevance(clip: "CLIPModel", patches: Tensor, embeddings: Tensor) -> Tensor:
    """Cosines ``[..., N]`` of projected CLIP patches with questions, float32.

    Args:
        clip: the pair the vision tower comes from.
        patches: ``[..., N, Dv]`` patch states of the layer the language model reads.
        embeddings: ``[..., D]`` of `text_embedding`, one per image; ``[D]`` serves all.

    Source: CDPruner's code (post-layernorm and projection of the selected layer), in float32.
    """
    with torch.autocast(clip.device.type, enabled=False):
        norm, projection = names.at(clip, "vision_model.post_layernorm"), names.at(clip, "visual_projection")
        states = norm(patches.to(clip.device, clip.dtype))
        projected = normalize(projection(states).float(), dim=-1)
        return (projected @ embeddings.to(clip.device).float().unsqueeze(-1)).squeeze(-1)


@remembered(last=16)
@torch.no_grad()
def _text_embedding(clip: "CLIPModel", key: tuple[str, torch.device, torch.dtype]) -> Tensor:
    tokenizer = tokenizer_at(clip.name_or_path)
    if tokenizer is None:
        raise MissingSignal(f"no tokenizer beside the CLIP model {clip.name_or_path!r}: save it there")
    windows = tokenizer(
        key[0],
        truncation=True,
        max_length=clip.config.text_config.max_position_embeddings,
        return_overflowing_tokens=True,
        padding=True,
        return_tensors="pt",
    ).to(clip.device)
    with torch.autocast(clip.device.type, enabled=False):
        output = clip.get_text_features(windows["input_ids"], attention_mask=windows["attention_mask"])
        embeddings: Tensor = names.features(output)
        return normalize(embeddings.float(), dim=-1).mean(dim=0)


def _device(model: "PreTrainedModel") -> torch.device:
    """Where inputs may be: accelerate leaves only the shapes of offloaded weights, and moves inputs."""
    return torch.device("cpu") if model.device.type == "meta" else model.device


@lru_cache(maxsize=4)
def _load_clip(path: str, device: str) -> "CLIPModel":
    from transformers import CLIPModel

    try:
        clip: CLIPModel = CLIPModel.from_pretrained(path, dtype=torch.float32).eval().to(device)
    except (OSError, ValueError) as error:
        raise MissingSignal(f"clip={path!r}: no CLIP model can be loaded from there") from error
    clip.vision_model.encoder = torch.nn.Identity()  # the VLM's own tower does its work
    return clip
