"""What methods inside the language model come to, for one prompt: which tokens, before which layers, how many."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveate.budget import Budget
from foveate.errors import InvalidBudget, UnsupportedModel
from foveate.families import Family
from foveate.flow.prompt import placeholder_id
from foveate.methods.inside import Inside
from foveate.pruned import Pruned

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Parts = Sequence[tuple[Inside, Budget]]


@dataclass(frozen=True, eq=False)
class Image:
    """The tokens of one image or video as they enter the language model.

    Attributes:
        row: of the batch.
        columns: ``[k]``, ascending columns of the prompt.
        held: ``[k]`` bool, those that are never dropped.
    """

    row: int
    columns: Tensor
    held: Tensor


@dataclass(frozen=True)
class Drop:
    """Before a layer: how many tokens of each image it is given, ranked by the attention of layer ``hears``."""

    method: Inside
    layer: int
    hears: int
    counts: tuple[int, ...]


def decoder_of(model: "PreTrainedModel", family: Family) -> Any:
    """The language model's decoder.

    Raises:
        UnsupportedModel: layers that do not attend to all that is before, or a family whose tokens look ahead.
    """
    decoder: Any = model.get_decoder()
    config = decoder.config
    kinds = set(getattr(config, "layer_types", None) or [])
    windows = kinds - {"full_attention"} or (not kinds and getattr(config, "sliding_window", None))
    if not family.drops_inside or windows:
        name = f"{family.name} with a language model of type {config.model_type!r}"
        raise UnsupportedModel(
            f"dropping tokens inside {name}: supported are language models that read left to right with full "
            "attention in all layers"
        )
    return decoder


def check_drops(model: "PreTrainedModel", family: Family, parts: Parts) -> None:
    """Refuse, before there is a prompt, what no prompt could make right.

    Raises:
        UnsupportedModel, InvalidOption, InvalidBudget: as `decoder_of`, `Inside.stages` and `drops_of`.
    """
    if parts:
        depth = len(decoder_of(model, family).layers)
        layers = [layer for method, _ in parts for layer in {layer for layer, _ in method.places(depth)}]
        for layer in layers:
            if layers.count(layer) > 1:
                raise InvalidBudget(f"two drops before layer {layer}: allowed is one")


def images_of(model: "PreTrainedModel", pruned: Pruned) -> list[Image]:
    """The images of a prompt, then its videos, as they enter the language model."""
    ids, mask = pruned["input_ids"], pruned["attention_mask"]
    found = []
    for kind in dict.fromkeys(pruned.kinds):
        which = [number for number, own in enumerate(pruned.kinds) if own == kind]
        columns = ((ids == placeholder_id(model, kind)) & mask.bool()).nonzero()[:, 1]
        parts = torch.split(columns, [len(pruned.kept[number]) for number in which])
        for number, own in zip(which, parts, strict=True):
            row = pruned.rows[number]
            last = mask[row].nonzero()[-1]
            locked = pruned.locked[number].to(ids.device)[pruned.kept[number].to(ids.device)]
            found.append(Image(row, own, locked | (own == last)))
    return found


def drops_of(depth: int, images: Sequence[Image], parts: Parts) -> dict[int, Drop]:
    """By layer. Budgets are of the tokens that enter the language model; no drop leaves more than one before it.

    Raises:
        InvalidBudget: fewer than are always kept, or what a method cannot serve.
        InvalidOption: a layer that is not there.
    """
    drops: dict[int, Drop] = {}
    rows, sizes = [image.row for image in images], [len(image.columns) for image in images]
    held = [int(image.held.sum()) for image in images]
    for method, budget in parts:
        counts = budget.counts_by_row(rows, sizes, held)
        per_image = [method.stages(depth, n, k) for n, k in zip(sizes, counts, strict=True)]
        for stages in zip(*per_image, strict=True):
            own = tuple(max(stage.count, few) for stage, few in zip(stages, held, strict=True))
            drops[stages[0].layer] = Drop(method, stages[0].layer, stages[0].hears, own)
    found: dict[int, Drop] = {}
    left = tuple(sizes)
    for layer in sorted(drops):
        left = tuple(map(min, left, drops[layer].counts))  # a count over what is left keeps all of that
        found[layer] = replace(drops[layer], counts=left)
    return found
