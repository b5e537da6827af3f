"""A prompt as it enters the language model, on the host: where its images and its text are."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.families import Family
from foveate.flow.prompt import placeholder_id, placeholders
from foveate.pruned import Pruned

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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


def layout_of(model: "PreTrainedModel", family: Family, pruned: Pruned) -> Layout:
    """The layout of a pruned prompt: from its plan, or read where it hangs on which tokens stay."""
    plan, chosen = pruned.plan, pruned.chosen.order is not None
    moves = chosen and (not plan.is_solid or any(bool(image.locked.any()) for image in plan.images))
    if plan.mask is None or moves:
        return _read(model, family, pruned)
    mask = plan.mask.numpy()
    last = Layout([], mask, mask).last
    images = []
    for image, slots in zip(plan.images, torch.split(plan.slots, list(plan.counts)), strict=True):
        columns = (slots % plan.width).numpy()
        locked = np.zeros(len(columns), dtype=bool) if chosen else image.locked.numpy()
        images.append(Image(image.row, columns, locked | (columns == last[image.row])))
    return Layout(images, mask, mask & plan.texts.gather(1, plan.template).numpy())


def _read(model: "PreTrainedModel", family: Family, pruned: Pruned) -> Layout:
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
