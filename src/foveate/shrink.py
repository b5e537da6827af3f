"""From kept indices to a shorter prompt, its positions, and the encoder output that fits it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveate.container import encoder_output
from foveate.encode import Encoded, encoder_arguments, placeholder_id, placeholders
from foveate.families import Family
from foveate.hf import names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LABEL_IGNORED = -100


@dataclass(frozen=True, eq=False)
class Features:
    """What stands in the places kept, of all images or all videos of a prompt.

    Attributes:
        rows: ``[n, D]`` of each batch row that has any: generate() repeats whole entries for beams, in every
            family.
        deepstack: per layer, the same.
    """

    rows: list[Tensor]
    deepstack: list[list[Tensor]]

    def detached(self) -> "Features":
        """The same without the graph that gradients would flow through."""
        layers = [[row.detach() for row in layer] for layer in self.deepstack]
        return Features([row.detach() for row in self.rows], layers)


@dataclass(frozen=True, eq=False)
class Shrunk(Mapping[str, Any]):
    """Keyword arguments for ``model.generate`` or ``model(...)``, one column per token that is left.

    ``mm_encoder_outputs`` is built afresh at every access: generate() expands it in place for beams,
    and the same pruned prompt may be used again.

    Attributes:
        tensors: all other arguments.
        features: by kind, ``image`` or ``video``.
        rope_deltas: ``[B, 1]``, how far the next position is ahead of the number of tokens before it.
        columns: how many columns the prompt had before.
    """

    tensors: dict[str, Any]
    features: dict[str, Features]
    rope_deltas: Tensor
    columns: int

    def __getitem__(self, key: str) -> Any:
        if key == names.ENCODED:
            return {kind: encoder_output(found.rows, found.deepstack) for kind, found in self.features.items()}
        return self.tensors[key]

    def detached(self) -> "Shrunk":
        """The same without the graph that gradients would flow through."""
        return replace(self, features={kind: found.detached() for kind, found in self.features.items()})

    def __iter__(self) -> Iterator[str]:
        yield from self.tensors
        yield names.ENCODED

    def __len__(self) -> int:
        return len(self.tensors) + 1


def shrink(
    model: "PreTrainedModel",
    family: Family,
    inputs: Mapping[str, Any],
    encoded: Encoded,
    kept: Sequence[Tensor],
    features: Sequence[Tensor],
    deepstack: Sequence[Sequence[Tensor]],
    positions: str,
) -> Shrunk:
    """Drop the placeholders that were not kept.

    Every input of the prompt's shape is cut alike; rows are padded anew on the side they were padded
    on. Where no row has padding, one masked column is put in front: generate() drops a mask of ones,
    and transformers then takes gaps in the positions for packed sequences (``use_cache=False``).

    Args:
        model: for its token ids and the names its encoders consume.
        family: for its positions.
        inputs: the processor's output, ``[B, L]`` tensors and pixels.
        encoded: one entry per image.
        kept: per image, ascending indices ``[k]`` of the tokens kept.
        features: per image ``[k, D]``, what stands in their places.
        deepstack: per image, per layer, the same of what the language model adds.
        positions: ``original`` ids of the unpruned prompt, or ``compact`` ones without gaps.
    """
    input_ids: Tensor = inputs["input_ids"]
    given = inputs.get("attention_mask")
    attended = torch.ones_like(input_ids) if given is None else given
    stays = _columns_that_stay(model, input_ids, encoded, kept) & attended.bool()
    on_left = not bool((attended[:, -1] == 0).any())
    axes = family.positions(model, dict(inputs))  # [axes, B, L], or None
    even = bool((stays.sum(dim=1) == stays.sum(dim=1).amax()).all())
    guard = positions == "original" and axes is None and even
    stands = placeholders(model, family, input_ids)
    own = _fill(input_ids, attended.bool(), stands, _pad_id(model, stands, input_ids))
    consumed = {name for kind in family.kinds for name in encoder_arguments(model, kind)}
    cut = {
        name: _cut(value, stays, LABEL_IGNORED if name == "labels" else 0, on_left, guard)
        for name, value in inputs.items()
        if isinstance(value, Tensor) and value.shape == input_ids.shape
    }
    rest = {name: value for name, value in inputs.items() if name not in cut and name not in consumed}
    mask = _cut(attended, stays, 0, on_left, guard)
    counted = _position_ids(mask)
    if positions == "original" and axes is None:
        ids = _cut(_position_ids(attended), stays, 0, on_left, guard)
    elif positions == "original" and axes is not None:
        # The first axis tells transformers where sequences begin; without gaps, there is one per row.
        ids = torch.stack([counted, *(_cut(axis, stays, 0, on_left, guard) for axis in axes)])
    else:
        ids = counted if axes is None else counted.expand(len(axes) + 1, *counted.shape)
    cut["input_ids"] = torch.where(mask.bool(), cut["input_ids"], own[:, None])
    tensors = {**rest, **cut, "attention_mask": mask, "position_ids": ids}
    latest = ids if axes is None else ids[1:].amax(dim=0)
    deltas = latest.masked_fill(mask == 0, 0).amax(dim=1, keepdim=True) + 1 - mask.sum(dim=1, keepdim=True)
    return Shrunk(tensors, _features(encoded, features, deepstack), deltas, input_ids.shape[1])


def _columns_that_stay(
    model: "PreTrainedModel", input_ids: Tensor, encoded: Encoded, kept: Sequence[Tensor]
) -> Tensor:
    """``[B, L]`` bool. Placeholders of a kind in row-major order are the concatenated tokens of its images."""
    stays = torch.ones_like(input_ids, dtype=torch.bool)
    for kind in dict.fromkeys(encoded.kinds):
        flags = [
            torch.zeros(len(tokens.features), dtype=torch.bool, device=input_ids.device).index_fill(
                0, indices.to(input_ids.device), True
            )
            for tokens, indices, own in zip(encoded.images, kept, encoded.kinds, strict=True)
            if own == kind
        ]
        stays[input_ids == placeholder_id(model, kind)] = torch.cat(flags)
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


def _fill(input_ids: Tensor, attended: Tensor, stands: Tensor, pad_id: int) -> Tensor:
    """``[B]``, the id of each row's masked columns: of padding where it has some, else one that it has.

    Penalties on repeated tokens count masked columns: the id of padding is often that of the end.
    """
    text = attended & ~stands
    first = input_ids.gather(1, text.int().argmax(dim=1, keepdim=True))[:, 0]
    return torch.where(attended.all(dim=1) & text.any(dim=1), first, pad_id)


def _pad_id(model: "PreTrainedModel", flags: Tensor, input_ids: Tensor) -> int:
    """An id for columns that are masked: any serves that is no placeholder."""
    marks = set(input_ids[flags].tolist())
    for config in (model.generation_config, model.config, model.config.get_text_config()):
        token = getattr(config, "pad_token_id", None)
        if isinstance(token, int) and token >= 0 and token not in marks:
            return token
    return 0


def _features(
    encoded: Encoded, features: Sequence[Tensor], deepstack: Sequence[Sequence[Tensor]]
) -> dict[str, Features]:
    found: dict[str, Features] = {}
    for kind in dict.fromkeys(encoded.kinds):
        which = [index for index, own in enumerate(encoded.kinds) if own == kind]
        rows = [encoded.rows[index] for index in which]
        layers = zip(*(deepstack[index] for index in which), strict=True)
        found[kind] = Features(
            _per_row(rows, [features[index] for index in which]), [_per_row(rows, list(layer)) for layer in layers]
        )
    return found


def _per_row(rows: Sequence[int], features: Sequence[Tensor]) -> list[Tensor]:
    merged: dict[int, list[Tensor]] = {}
    for row, image in zip(rows, features, strict=True):
        merged.setdefault(row, []).append(image)
    return [torch.cat(parts) for parts in merged.values()]
