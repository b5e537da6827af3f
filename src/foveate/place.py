"""Which tokens of each image stay, and what stands in their places."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveate.budget import Budget
from foveate.encode import Encoded, placeholder_id, placeholders
from foveate.errors import InvalidFeatures, InvalidOption
from foveate.families import VIDEO, Family
from foveate.methods import Merging, Method, Resizing
from foveate.resize import Grid, Standing, encode_resized
from foveate.share import shares
from foveate.tokens import VisualTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Ranking:
    """The orders that one method gave, one per image (or frame of a video), so that none is ranked twice.

    An order answers for its own count again, and for smaller ones where the method is nested; a nested
    method's longest one is held, else the newest.
    """

    def __init__(self, method: Method) -> None:
        self._method = method
        self._orders: dict[tuple[int, int], Tensor] = {}

    @torch.no_grad()
    def of(self, index: int, tokens: VisualTokens, k: int, frame: int = -1) -> Tensor:
        """`Method.rank` of image ``index``, or of one of its frames: ``[k]``."""
        known = self._orders.get((index, frame))
        if known is not None and (len(known) == k or (self._method.nested and len(known) > k)):
            return known[:k]
        order = self._method.rank(tokens, k)
        self._check(order, k, len(tokens.features))
        self._orders[index, frame] = order
        return order

    def _check(self, order: Tensor, k: int, n: int) -> None:
        """Refuse what a method of one's own may give by mistake."""
        fits = isinstance(order, Tensor) and order.dim() == 1 and order.dtype == torch.long
        fits = fits and (len(order) == k or (isinstance(self._method, Resizing) and 0 < len(order) < k))
        if (
            not fits
            or len(torch.unique(order)) != len(order)
            or bool((order < 0).any())
            or bool((order >= n).any())
        ):
            given = f"{order.dtype} {list(order.shape)}" if isinstance(order, Tensor) else type(order).__name__
            raise InvalidOption(
                f"{type(self._method).__name__}.rank gave {given} for k={k} of {n} tokens: allowed are {k} "
                f"distinct int64 indices from 0 to {n - 1}"
            )


def choose(
    model: "PreTrainedModel",
    family: Family,
    prompt: dict[str, Any],
    encoded: Encoded,
    ranking: Ranking,
    budget: Budget,
    per_frame: bool,
) -> list[Tensor]:
    """Per image ``[k]``, the indices to keep: locked rows first, then in order of selection.

    With ``per_frame``, each frame of a video is ranked by itself, for a share of k as large as its share of
    tokens, and the frames follow one another.

    Raises:
        InvalidBudget: fewer than are always kept.
    """
    at_the_end = _images_at_the_end(family, model, prompt, encoded)
    orders = []
    for index, (tokens, k) in enumerate(zip(encoded.images, _counts(encoded, budget, at_the_end), strict=True)):
        hold = index in at_the_end
        frames = per_frame and encoded.kinds[index] == VIDEO
        orders.append(order_of(index, tokens, ranking, k, hold, frames))
    return orders


def order_of(
    index: int, tokens: VisualTokens, ranking: Ranking, k: int, hold_last: bool = False, frames: bool = False
) -> Tensor:
    """`choose`, of one image: ``[k]``, locked rows first, then in order of selection.

    Args:
        index: of the image, for ``ranking``.
        tokens: the image, locked rows and all.
        ranking: of the method.
        k: no fewer than the locked rows (and the last token, if held).
        hold_last: whether the last token must be among them: the prompt ends with it.
        frames: whether each frame is ranked by itself.
    """
    n = len(tokens.features)
    locked = tokens.locked.nonzero().flatten()
    if k == n:
        return torch.arange(n, device=locked.device)
    if k == len(locked):
        return locked
    free = (~tokens.locked).nonzero().flatten()
    rest = k - len(locked)
    chosen = (
        _by_frame(index, tokens.unlocked(), ranking, rest)
        if frames
        else ranking.of(index, tokens.unlocked(), rest)
    )
    order = torch.cat([locked, free[chosen]])
    if hold_last and not bool((order == n - 1).any()):
        order[-1] = n - 1
    return order


def place(
    model: "PreTrainedModel",
    family: Family,
    prompt: dict[str, Any],
    encoded: Encoded,
    method: Method,
    orders: Sequence[Tensor],
    per_frame: bool = False,
) -> list[Standing]:
    """Per image, what stands at the tokens chosen, in the same order.

    Their own features; what a `Merging` method makes of all; or those of the smaller image that a
    `Resizing` one asks for. Where all tokens are kept, or only locked ones, they are their own. Gradients flow.

    Raises:
        InvalidFeatures: the encoder gave NaN or infinite values for a smaller image.
    """
    placed = [
        Standing(tokens.features, layers).at(order)
        for tokens, layers, order in zip(encoded.images, encoded.deepstack, orders, strict=True)
    ]
    if isinstance(method, Merging):
        for index, (tokens, order) in enumerate(zip(encoded.images, orders, strict=True)):
            locked = int(tokens.locked.sum())
            k = len(order) - locked
            if k == 0 or len(order) == len(tokens.features):
                continue
            frames = per_frame and encoded.kinds[index] == VIDEO
            merged = _merged(model, family, method, tokens.unlocked(), k, frames)
            own = placed[index]
            placed[index] = own._replace(features=torch.cat([own.features[:locked], merged]))
    elif isinstance(method, Resizing):
        sizes = [_sizes(method, tokens, order) for tokens, order in zip(encoded.images, orders, strict=True)]
        for index, small in encode_resized(model, family, prompt, encoded, sizes, orders).items():
            placed[index] = placed[index].with_last(small)
    return placed


def _sizes(method: Resizing, tokens: VisualTokens, order: Tensor) -> list[Grid | None]:
    """Of each grid, the size to make it smaller to; None where it has no token, or is kept with all others."""
    kept = torch.zeros_like(tokens.locked).index_fill(0, order, True)
    if bool(kept.all()):
        return [None] * len(tokens.grids)
    areas = [height * width for height, width in tokens.grids]
    counts = [int(part.sum()) for part in torch.split(kept[~tokens.locked], areas)]
    return [method.size(grid, count) if count else None for grid, count in zip(tokens.grids, counts, strict=True)]


def _merged(
    model: "PreTrainedModel", family: Family, method: Merging, tokens: VisualTokens, k: int, frames: bool
) -> Tensor:
    parts = tokens.frames() if frames else [tokens]
    kept = shares(k, [len(part.features) for part in parts])
    merged = torch.cat([method.merge(part, share) for part, share in zip(parts, kept, strict=True) if share])
    if merged.dim() != 2 or len(merged) != k or not bool(torch.isfinite(merged).all()):
        raise InvalidFeatures(
            f"{type(method).__name__}.merge gave {list(merged.shape)}: allowed are {k} rows of finite numbers"
        )
    projector = family.projector(model) if method.unprojected else None
    if projector is None:
        return merged
    projected: Tensor = projector(merged[None])[0]
    return projected


def _counts(encoded: Encoded, budget: Budget, at_the_end: set[int]) -> list[int]:
    """The budget of each image; a total is shared within a row.

    Raises:
        InvalidBudget: fewer than are always kept: locked rows, and the last token of the prompt.
    """
    locked = [tokens.locked for tokens in encoded.images]
    least = [
        int(flags.sum()) + (index in at_the_end and not bool(flags[-1])) for index, flags in enumerate(locked)
    ]
    return budget.counts_by_row(encoded.rows, [len(flags) for flags in locked], least)


def _by_frame(index: int, tokens: VisualTokens, ranking: Ranking, k: int) -> Tensor:
    frames = tokens.frames()
    sizes = [len(frame.features) for frame in frames]
    starts = itertools.accumulate(sizes, initial=0)
    return torch.cat(
        [
            start + ranking.of(index, frame, share, number)
            for number, (start, frame, share) in enumerate(zip(starts, frames, shares(k, sizes), strict=False))
            if share
        ]
    )


def _images_at_the_end(
    family: Family, model: "PreTrainedModel", prompt: dict[str, Any], encoded: Encoded
) -> set[int]:
    """Images whose last token ends a row: its query writes the first answer token, so it must stay."""
    found = set()
    ids, mask = prompt["input_ids"], prompt.get("attention_mask")
    stands = placeholders(model, family, ids)
    for row in set(encoded.rows):
        last = -1 if mask is None else int(mask[row].nonzero()[-1])
        if bool(stands[row, last]):
            kinds = [kind for kind in family.kinds if int(ids[row, last]) == placeholder_id(model, kind)]
            own = zip(encoded.rows, encoded.kinds, strict=True)
            found.add(max(index for index, (owner, kind) in enumerate(own) if owner == row and kind in kinds))
    return found
