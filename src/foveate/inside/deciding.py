"""One drop: which tokens stay is decided on the device, from their scores; how many do is known before."""

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.errors import InvalidOption
from foveate.inside.layout import Layout
from foveate.inside.plan import Drop, dropped_of
from foveate.inside.tables import Tables


@dataclass(frozen=True, eq=False)
class Gone:
    """Tokens of an image that a drop took, best first, of which some may stand for others.

    Attributes:
        row: of the batch.
        columns: ``[n]`` among those before the drop.
        scores: ``[n]``.
        standing: ``[c]`` of these columns, those that stay.
    """

    row: int
    columns: Tensor
    scores: Tensor
    standing: Tensor


@dataclass(frozen=True, eq=False)
class Left:
    """The prompt from one drop on.

    Attributes:
        within: ``[B, W]``, where its columns are among those before the drop.
        columns: ``[B, W]`` of the prompt, ascending.
        owners: ``[B, W]``, as `Layout.owners`.
        real: ``[B, W]`` bool, those that may be attended to; None where all may.
        gone: of methods that recycle, what was dropped of each image.
    """

    within: Tensor
    columns: Tensor
    owners: Tensor
    real: Tensor | None
    gone: list[Gone]


def decided(
    layout: Layout, tables: Tables, drop: Drop, before: Left | None, scores: Tensor, states: Tensor
) -> tuple[Tensor, Left]:
    """The states before a drop, with what stands for others in its place; and what is left.

    Args:
        layout: of the prompt.
        tables: likewise.
        drop: what to drop.
        before: what is there; None for the whole prompt.
        scores: ``[B, W]``.
        states: ``[B * copies, W, D]``, what the layer would be given.
    """
    owners = tables.owners if before is None else before.owners
    held = tables.held if before is None else tables.held.gather(1, before.columns)
    ranked = scores.masked_fill(held, float("inf")).argsort(dim=1, descending=True, stable=True)
    order = ranked.gather(1, owners.gather(1, ranked).argsort(dim=1, stable=True))
    stays = torch.empty_like(tables.orders[drop.layer]).scatter_(1, order, tables.orders[drop.layer])
    gone = []
    if drop.left != drop.counts:
        copies, states = len(states) // len(stays), states.clone()
        for row, slots in dropped_of(layout, drop):
            columns = order[row, slots]
            own = states[row * copies : (row + 1) * copies]
            gone.append(_recycled(drop, row, columns, scores[row, columns], None, own))
            stays[row].index_fill_(0, gone[-1].standing, 1)
    first = stays.shape[1] - drop.width
    if layout.fills_left:  # columns that go are sorted before all others
        within = stays.argsort(dim=1, stable=True)[:, first:]
    else:
        within = stays.argsort(dim=1, descending=True, stable=True)[:, : drop.width]
    columns = within if before is None else before.columns.gather(1, within)
    owners, real = owners.gather(1, within), None
    if not drop.full:
        real = stays.gather(1, within).bool()
        owners = torch.where(real, owners, len(layout.images) + 1)
        real = real & tables.mask.gather(1, columns)
    return states, Left(within, columns, owners, real, gone)


def recycled_again(drop: Drop, left: Left, states: Tensor) -> Tensor:
    """The states before a drop, with what stands for others where the first pass put it."""
    if left.gone:
        copies, states = len(states) // len(left.within), states.clone()
        for gone in left.gone:
            own = states[gone.row * copies : (gone.row + 1) * copies]
            _recycled(drop, gone.row, gone.columns, gone.scores, gone.standing, own)
    return states


def _recycled(
    drop: Drop, row: int, columns: Tensor, scores: Tensor, standing: Tensor | None, states: Tensor
) -> Gone:
    """Puts into ``states [copies, W, D]`` of a row what stands for others of an image, where it stood before."""
    device, columns = columns.device, columns.to(states.device)
    with torch.autocast(states.device.type, enabled=False):
        found = drop.method.recycle(states[0, columns], scores.to(states.device))
    count, expected = 0 if found is None else len(found.places), drop.method.recycled(len(columns))
    if count != expected:
        raise InvalidOption(
            f"{drop.method!r} recycled {count} of {len(columns)} dropped tokens: allowed are as many as its "
            f"recycled({len(columns)}) says, {expected}"
        )
    if standing is None:
        standing = columns[:0] if found is None else columns[found.places]
    if found is not None:
        states[:, standing.to(states.device)] = found.states
    return Gone(row, columns.to(device), scores, standing.to(device))
