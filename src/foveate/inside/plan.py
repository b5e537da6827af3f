"""What methods inside the language model do to a prompt, as far as the host knows: all but which tokens stay."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from foveate.budget import Budget
from foveate.encode import placeholder_id, placeholders
from foveate.errors import InvalidBudget, UnsupportedModel
from foveate.families import Family
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
    columns: NDArray[np.int64]
    held: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Layout:
    """A prompt as it enters the language model.

    Attributes:
        images: its images, then its videos.
        mask: ``[B, L]`` bool, the columns that may be attended to.
        text: ``[B, L]`` bool, those of them that stand for no image.
    """

    images: list[Image]
    mask: NDArray[np.bool_]
    text: NDArray[np.bool_]

    @property
    def fills_left(self) -> bool:
        """Whether rows that become shorter than others are filled on the left: the side of their padding."""
        rows = self.mask[self.mask.any(axis=1)]
        return bool(rows[:, -1].all() or not rows[:, 0].all())

    @property
    def last(self) -> NDArray[np.int64]:
        """``[B]``: the last attended column of each row; of a row without one, its last."""
        width = self.mask.shape[1]
        behind = np.where(self.mask.any(axis=1), self.mask[:, ::-1].argmax(axis=1), 0)
        last: NDArray[np.int64] = width - 1 - behind
        return last

    @property
    def owners(self) -> NDArray[np.int64]:
        """``[B, L]``: the number of the image that a column is of; else as many as there are images.

        One more is for padding at the side that is filled: no layer needs it.
        """
        owners = np.full(self.mask.shape, len(self.images))
        side = self.mask if self.fills_left else self.mask[:, ::-1]
        idle = ~np.logical_or.accumulate(side, axis=1)
        idle[~side.any(axis=1)] = True
        owners[idle if self.fills_left else idle[:, ::-1]] += 1
        for number, image in enumerate(self.images):
            owners[image.row, image.columns] = number
        return owners


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


def layout_of(model: "PreTrainedModel", family: Family, pruned: Pruned) -> Layout:
    """The layout of a pruned prompt, read from the device."""
    ids, mask = pruned["input_ids"].cpu(), pruned["attention_mask"].cpu().bool()
    images: list[Image] = []
    last = Layout([], mask.numpy(), mask.numpy()).last
    for kind in dict.fromkeys(pruned.kinds):
        which = [number for number, own in enumerate(pruned.kinds) if own == kind]
        columns = ((ids == placeholder_id(model, kind)) & mask).numpy().nonzero()[1]
        ends = np.cumsum([len(pruned.kept[number]) for number in which])
        for number, own in zip(which, np.split(columns, ends[:-1]), strict=True):
            locked = _host(pruned.locked[number])[_host(pruned.kept[number])]
            images.append(Image(pruned.rows[number], own, locked | (own == last[pruned.rows[number]])))
    return Layout(images, mask.numpy(), (mask & ~placeholders(model, family, ids)).numpy())


def _host(tensor: Tensor) -> NDArray[Any]:
    values: NDArray[Any] = tensor.cpu().numpy()
    return values


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


@dataclass(frozen=True, eq=False)
class Raters:
    """Rows whose visual tokens and following text are as many, for a method to choose among the text.

    Attributes:
        rows: ``[G]``.
        visual: ``[G, N]``, columns of the row's images.
        text: ``[G, M]``, columns of the text behind the last of them.
    """

    rows: NDArray[np.int64]
    visual: NDArray[np.int64]
    text: NDArray[np.int64]


def raters_of(layout: Layout) -> list[Raters]:
    """Rows with images and text behind the last of them."""
    groups: dict[tuple[int, int], list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]] = {}
    for row in sorted({image.row for image in layout.images}):
        visual = np.concatenate([image.columns for image in layout.images if image.row == row])
        text = layout.text[row].nonzero()[0]
        text = text[text > visual.max()]
        if len(text):
            groups.setdefault((len(visual), len(text)), []).append((row, visual, text))
    return [Raters(*(np.stack(part) for part in zip(*group, strict=True))) for group in groups.values()]
