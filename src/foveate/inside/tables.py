"""What the plan of a prompt's drops says, on the device: uploaded once, before the first layer runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.inside.layout import Layout, Raters, raters_of
from foveate.inside.plan import Drop, order_of


@dataclass(frozen=True, eq=False)
class Asking:
    """The text columns that may rate, of all rows.

    Attributes:
        weights: ``[B, R]`` float32, those of rows in no group: 1 for the last token.
        groups: ``(rows [G], visual [G, N], text [G, M])`` of rows among whose text a method chooses.
    """

    weights: Tensor
    groups: list[tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Tables:
    """What is known of a prompt and its drops.

    Attributes:
        mask: ``[B, L]`` bool.
        full: whether all of it may be attended to.
        owners: ``[B, L]``, `Layout.owners`.
        held: ``[B, L]`` bool, tokens that are never dropped.
        orders: by layer of a drop ``[B, W]`` uint8, `order_of`.
        last: by layer of a drop ``[B, 1]``, where each row's last token is when it is heard.
        text: the same ``[B, R]`` of the text that may rate; empty where no method chooses.
        asking: that text; None where no method chooses.
    """

    mask: Tensor
    full: bool
    owners: Tensor
    held: Tensor
    orders: dict[int, Tensor]
    last: dict[int, Tensor]
    text: dict[int, Tensor]
    asking: Asking | None


def tables_of(layout: Layout, drops: Sequence[Drop], chooses: bool, device: torch.device) -> Tables:
    """The tables of a prompt; ``chooses``: whether a method chooses among the text."""
    held = np.zeros_like(layout.mask)
    for image in layout.images:
        held[image.row, image.columns] = image.held
    orders, lasts, texts = [], [], []
    width, shift = layout.mask.shape[1], np.zeros(len(layout.mask), dtype=int)
    groups = raters_of(layout) if chooses else []
    columns, weights = _rated(layout, groups)
    for drop in drops:
        orders.append(order_of(layout, drop, width).astype(np.uint8))
        lasts.append((layout.last + shift)[:, None])
        texts.append(columns + shift[:, None])
        width, shift = drop.width, drop.shift
    grouped = [part for group in groups for part in (group.rows, group.visual, group.text)]
    longs = iter(_uploaded([layout.owners, *lasts, *texts, *grouped], torch.int64, device))
    bytes_ = iter(_uploaded([layout.mask, held, *orders, weights], torch.uint8, device))
    mask, held_there = next(bytes_).bool(), next(bytes_).bool()
    owners, layers = next(longs), [drop.layer for drop in drops]
    order, last, text = ({layer: next(source) for layer in layers} for source in (bytes_, longs, longs))
    asking = Asking(next(bytes_).float(), [(next(longs), next(longs), next(longs)) for _ in groups])
    full = bool(layout.mask.all())
    return Tables(mask, full, owners, held_there, order, last, text, asking if chooses else None)


def _rated(layout: Layout, groups: Sequence[Raters]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """`Asking`'s columns and weights: the text of rows in a group, and the last token of all others."""
    widest = max([group.text.shape[1] for group in groups], default=1)
    columns = np.repeat(layout.last[:, None], widest, axis=1)
    weights = np.zeros(columns.shape, dtype=np.uint8)
    weights[:, 0] = 1
    for group in groups:
        columns[group.rows, : group.text.shape[1]] = group.text
        weights[group.rows] = 0
    return columns, weights


def _uploaded(arrays: Sequence[NDArray[Any]], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """The arrays on the device, by one copy."""
    flat = torch.from_numpy(np.concatenate([array.reshape(-1) for array in arrays])).to(dtype)
    parts = torch.split(flat.to(device, non_blocking=True), [array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
