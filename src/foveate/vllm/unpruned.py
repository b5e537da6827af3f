"""The prompt as it would be if nothing were pruned, for the one question of positions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from vllm.multimodal.inputs import PlaceholderRange

from foveate.vllm.choice import FIELD


@dataclass(frozen=True)
class Unpruned:
    """The whole prompt.

    Attributes:
        tokens: ``[L']`` ids.
        features: vLLM's descriptions of its images and videos, at their places there.
        columns: ``[L]``, per token of the pruned prompt its place there; that of the first one for all of an image
            that is pruned.
    """

    tokens: list[int]
    features: list[Any]
    columns: list[int]


def unpruned(tokens: list[int], features: list[Any], size: Callable[[Mapping[str, Tensor]], int]) -> Unpruned:
    """The whole prompt of a pruned one.

    Args:
        tokens: ``[L]`` ids.
        features: vLLM's `MultiModalFeatureSpec`.
        size: how many tokens an image has, given its fields.

    Raises:
        ValueError: an image without fields, of which nobody can tell whether it is pruned.
    """
    whole: list[int] = []
    columns: list[int] = []
    moved: list[Any] = []
    done = 0
    for feature in sorted(features, key=lambda feature: feature.mm_position.offset):
        place = feature.mm_position
        columns += range(len(whole), len(whole) + place.offset - done)
        whole += tokens[done : place.offset]
        start, done = len(whole), place.offset + place.length
        if feature.data is None and feature.modality == "image":
            raise ValueError(f"the image at token {place.offset} came without its fields: its size is not known")
        if feature.data is not None and FIELD in feature.data:
            length = size({name: element.data for name, element in feature.data.items()})
            moved.append(replace(feature, mm_position=PlaceholderRange(offset=start, length=length)))
            whole += [tokens[place.offset]] * length
            columns += [start] * place.length
        else:
            moved.append(replace(feature, mm_position=replace(place, offset=start)))
            whole += tokens[place.offset : done]
            columns += range(start, len(whole))
    columns += range(len(whole), len(whole) + len(tokens) - done)
    return Unpruned(whole + tokens[done:], moved, columns)
