"""From kept indices to a shorter prompt, its positions, and the encoder output that fits it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveate.encode import Encoded, encoder_arguments, image_token_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POSITIONS = ("original", "compact")
LABEL_IGNORED = -100


@dataclass(frozen=True, eq=False)
class Shrunk(Mapping[str, Any]):
    """Keyword arguments for ``model.generate`` or ``model(...)``, one column per token that is left.

    ``mm_encoder_outputs`` is built afresh at every access: generate() expands it in place for beams,
    and the same pruned prompt may be used again.
    """

    tensors: dict[str, Any]
    features_per_row: list[Tensor]

    def __getitem__(self, key: str) -> Any:
        if key == "mm_encoder_outputs":
            return {"image": _encoder_output(self.features_per_row)}
        return self.tensors[key]

    def detached(self) -> "Shrunk":
        """The same without the graph that gradients would flow through."""
        return replace(self, features_per_row=[features.detach() for features in self.features_per_row])

    def __iter__(self) -> Iterator[str]:
        yield from self.tensors
        yield "mm_encoder_outputs"

    def __len__(self) -> int:
        return len(self.tensors) + 1


def shrink(
    model: "PreTrainedModel",
    inputs: Mapping[str, Any],
    encoded: Encoded,
    kept: Sequence[Tensor],
    features: Sequence[Tensor],
    positions: str,
) -> Shrunk:
    """Drop the placeholders that were not kept.

    Every input of the prompt's shape is cut alike; rows are padded anew on the side they were padded
    on. Where no row has padding, one masked column is put in front: generate() drops a mask of ones,
    and transformers then takes gaps in the positions for packed sequences (``use_cache=False``).

    Args:
        model: for its token ids and the names its encoder consumes.
        inputs: the processor's output, ``[B, L]`` tensors and pixels.
        encoded: one entry per image.
        kept: per image, ascending indices ``[k]`` of the tokens kept.
        features: per image ``[k, D]``, what stands in their places.
        positions: ``original`` ids of the unpruned prompt, or ``compact`` ones without gaps.
    """
    input_ids: Tensor = inputs["input_ids"]
    given = inputs.get("attention_mask")
    attended = torch.ones_like(input_ids) if given is None else given
    stays = _columns_that_stay(input_ids == image_token_id(model), encoded, kept) & attended.bool()
    on_left = not bool((attended[:, -1] == 0).any())
    guard = positions == "original" and bool((stays.sum(dim=1) == stays.sum(dim=1).amax()).all())
    fill = {"input_ids": _pad_id(model), "labels": LABEL_IGNORED}
    consumed = set(encoder_arguments(model))
    cut = {
        name: _cut(value, stays, fill.get(name, 0), on_left, guard)
        for name, value in inputs.items()
        if isinstance(value, Tensor) and value.shape == input_ids.shape
    }
    rest = {name: value for name, value in inputs.items() if name not in cut and name not in consumed}
    mask = _cut(attended, stays, 0, on_left, guard)
    ids = _position_ids(attended if positions == "original" else mask)
    if positions == "original":
        ids = _cut(ids, stays, 0, on_left, guard)
    tensors = {**rest, **cut, "attention_mask": mask, "position_ids": ids}
    return Shrunk(tensors, _features_per_row(encoded, features))


def _columns_that_stay(placeholders: Tensor, encoded: Encoded, kept: Sequence[Tensor]) -> Tensor:
    """``[B, L]`` bool. Placeholders in row-major order are the concatenated tokens of the images."""
    flags = []
    for tokens, indices in zip(encoded.images, kept, strict=True):
        flag = torch.zeros(len(tokens.features), dtype=torch.bool, device=placeholders.device)
        flag[indices.to(flag.device)] = True
        flags.append(flag)
    stays = ~placeholders
    stays[placeholders] = torch.cat(flags)
    return stays


def _cut(values: Tensor, stays: Tensor, fill: int, on_left: bool, guard: bool) -> Tensor:
    """``[B, L']``: the columns that stay, per row, padded to the longest row (and one more as guard)."""
    rows = [row[flags] for row, flags in zip(values, stays, strict=True)]
    width = max(len(row) for row in rows)
    short = [width - len(row) for row in rows]
    padded = [
        pad(row, (gap, 0) if on_left else (0, gap), value=fill) for row, gap in zip(rows, short, strict=True)
    ]
    return pad(torch.stack(padded), (int(guard), 0), value=fill)


def _position_ids(mask: Tensor) -> Tensor:
    """Position ids as transformers derives them from a mask: counting attended columns."""
    return (mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def _pad_id(model: "PreTrainedModel") -> int:
    for config in (model.generation_config, model.config, model.config.get_text_config()):
        token = getattr(config, "pad_token_id", None)
        if isinstance(token, int) and token >= 0 and token != image_token_id(model):
            return token
    return 0  # masked: any id that is no placeholder serves


def _features_per_row(encoded: Encoded, features: Sequence[Tensor]) -> list[Tensor]:
    """Features, one entry per batch row: generate() repeats whole entries for beams, in every family."""
    rows: dict[int, list[Tensor]] = {}
    for image, row in zip(features, encoded.rows, strict=True):
        rows.setdefault(row, []).append(image)
    return [torch.cat(parts) for parts in rows.values()]


def _encoder_output(features_per_row: list[Tensor]) -> Any:
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    output: Any = BaseModelOutputWithPooling()
    output.pooler_output = list(features_per_row)  # annotated as one tensor, read as a list by every family
    return output
