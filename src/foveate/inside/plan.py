"""What methods inside the language model do to a prompt, as far as the host knows: all but which tokens stay."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from foveate.budget import Budget
from foveate.errors import InvalidBudget, UnsupportedModel
from foveate.families import Family
from foveate.inside.layout import Layout
from foveate.methods.inside import Inside

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Parts = Sequence[tuple[Inside, Budget]]


@dataclass(frozen=True, eq=False)
class Drop:
    """Before a layer: how many tokens of each image it is given, ranked by the attention of layer ``hears``.

    Attributes:
        method: whose drop it is.
        layer: the first that does without the tokens.
        hears: whose attention counts.
        before: tokens of each image that are there.
        counts: tokens of each image that stay for their rank.
        left: these, and those of the dropped ones that stand for others.
        width: of the prompt that is left, in columns.
        full: whether all of these columns may be attended to.
        shift: ``[B]``, by how much a row's last columns move.
    """

    method: Inside
    layer: int
    hears: int
    before: tuple[int, ...]
    counts: tuple[int, ...]
    left: tuple[int, ...]
    width: int
    full: bool
    shift: NDArray[np.int64]


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


def drops_of(depth: int, layout: Layout, parts: Parts) -> list[Drop]:
    """Ascending by layer. Budgets are of the tokens that enter the language model; no drop adds to one before it.

    Raises:
        InvalidBudget: fewer than are always kept, or what a method cannot serve.
        InvalidOption: a layer that is not there.
    """
    planned: dict[int, tuple[Inside, int, list[int]]] = {}
    images = layout.images
    rows, sizes = [image.row for image in images], [len(image.columns) for image in images]
    held = [int(image.held.sum()) for image in images]
    for method, budget in parts:
        budgets = budget.counts_by_row(rows, sizes, held)
        per_image = [method.stages(depth, n, k) for n, k in zip(sizes, budgets, strict=True)]
        for stages in zip(*per_image, strict=True):
            counts = [max(stage.count, few) for stage, few in zip(stages, held, strict=True)]
            planned[stages[0].layer] = method, stages[0].hears, counts
    drops: list[Drop] = []
    few, before = tuple(sizes), tuple(sizes)
    for layer, (method, hears, counts) in sorted(planned.items()):
        few = tuple(map(min, few, counts))  # a count over what is left keeps all of that
        left = tuple(k + method.recycled(n - k) for n, k in zip(before, few, strict=True))
        drops.append(Drop(method, layer, hears, before, few, left, *_shape(layout, left)))
        before = left
    return drops


def _shape(layout: Layout, left: tuple[int, ...]) -> tuple[int, bool, NDArray[np.int64]]:
    """`Drop`'s ``width``, ``full`` and ``shift``, where ``left`` tokens of each image are left."""
    owners, width = layout.owners, layout.mask.shape[1]
    stays = (owners == len(layout.images)).sum(axis=1)
    gone = np.zeros_like(stays)
    for image, count in zip(layout.images, left, strict=True):
        stays[image.row] += count
        gone[image.row] += len(image.columns) - count
    new = int(max(stays.max(), 1))
    attended = layout.mask.sum(axis=1) - gone
    shift = np.full_like(gone, new - width) if layout.fills_left else -gone
    return new, bool((attended == new).all()), shift


def order_of(layout: Layout, drop: Drop, width: int) -> NDArray[np.bool_]:
    """``[B, W]``: which columns stay, where a row's columns are ordered by owner, those of an image by their rank.

    Args:
        layout: of the prompt.
        drop: what is dropped.
        width: ``W``, columns before it.
    """
    stays = np.zeros((len(layout.mask), width), dtype=bool)
    ends = np.zeros(len(stays), dtype=int)
    for image, n, k in zip(layout.images, drop.before, drop.counts, strict=True):
        stays[image.row, ends[image.row] : ends[image.row] + k] = True
        ends[image.row] += n
    for row, count in enumerate((layout.owners == len(layout.images)).sum(axis=1)):
        stays[row, ends[row] : ends[row] + count] = True
    return stays


def dropped_of(layout: Layout, drop: Drop) -> list[tuple[int, slice]]:
    """Per image, its row and where its dropped tokens are in the order of `order_of`, best first."""
    ends = np.zeros(len(layout.mask), dtype=int)
    found = []
    for image, n, k in zip(layout.images, drop.before, drop.counts, strict=True):
        found.append((image.row, slice(int(ends[image.row]) + k, int(ends[image.row]) + n)))
        ends[image.row] += n
    return found
