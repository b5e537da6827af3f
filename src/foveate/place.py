"""Which tokens of each image stay, and what stands in their places."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveate.budget import Budget
from foveate.encode import Encoded, encode_resized, image_token_id
from foveate.errors import InvalidBudget
from foveate.families import Family
from foveate.methods import Merging, Method, Resizing
from foveate.tokens import VisualTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Ranking:
    """The orders that one method gave, one per image, so that none is ranked twice without need.

    An order answers for its own count again, and for smaller ones where the method is nested; a nested
    method's longest one is held, else the newest.
    """

    def __init__(self, method: Method) -> None:
        self._method = method
        self._orders: dict[int, Tensor] = {}

    @torch.no_grad()
    def of(self, index: int, tokens: VisualTokens, k: int) -> Tensor:
        """`Method.rank` of image ``index``: ``[k]``."""
        known = self._orders.get(index)
        if known is not None and (len(known) == k or (self._method.nested and len(known) > k)):
            return known[:k]
        self._orders[index] = self._method.rank(tokens, k)
        return self._orders[index]


def choose(
    model: "PreTrainedModel", prompt: dict[str, Any], encoded: Encoded, ranking: Ranking, budget: Budget
) -> list[Tensor]:
    """Per image ``[k]``, the indices to keep: locked rows first, then in order of selection.

    Raises:
        InvalidBudget: fewer than are always kept.
    """
    at_the_end = _images_at_the_end(model, prompt, encoded)
    return [
        _order(index, tokens, ranking, budget, index in at_the_end) for index, tokens in enumerate(encoded.images)
    ]


def place(
    model: "PreTrainedModel",
    family: Family,
    prompt: dict[str, Any],
    encoded: Encoded,
    method: Method,
    orders: Sequence[Tensor],
) -> list[Tensor]:
    """Per image ``[k, D]``, what stands at the tokens chosen, in the same order.

    Their own features; what a `Merging` method makes of all; or those of the smaller image that a
    `Resizing` one asks for, all images of one size encoded together. Where all tokens are kept, or only
    locked ones, they are their own. Gradients flow.

    Raises:
        InvalidFeatures: the encoder gave NaN or infinite values for a smaller image.
    """
    placed = [tokens.features[order] for tokens, order in zip(encoded.images, orders, strict=True)]
    resized: dict[tuple[int, int], list[Tensor]] = {}
    for index, (tokens, order) in enumerate(zip(encoded.images, orders, strict=True)):
        locked = int(tokens.locked.sum())
        k = len(order) - locked
        if k == 0 or len(order) == len(tokens.features):
            continue
        if isinstance(method, Merging):
            placed[index] = torch.cat([placed[index][:locked], method.merge(tokens.unlocked(), k)])
        elif isinstance(method, Resizing):
            size = method.size(tokens.grid, k)
            if size not in resized:
                resized[size] = encode_resized(model, family, prompt, size)
            small = resized[size][index]
            rows = family.locked(model, small)
            placed[index] = torch.cat([small[rows], small[~rows]])
    return placed


def _order(index: int, tokens: VisualTokens, ranking: Ranking, budget: Budget, hold_last: bool) -> Tensor:
    n = len(tokens.features)
    k = budget.count(n)
    locked = tokens.locked.nonzero().flatten()
    if k < len(locked) + hold_last:
        raise InvalidBudget(
            f"keep={budget.keep!r}: {len(locked) + hold_last} tokens of this image are always kept"
        )
    if k == n:
        return torch.arange(n, device=locked.device)
    if k == len(locked):
        return locked
    free = (~tokens.locked).nonzero().flatten()
    order = torch.cat([locked, free[ranking.of(index, tokens.unlocked(), k - len(locked))]])
    if hold_last and not bool((order == n - 1).any()):
        order[-1] = n - 1
    return order


def _images_at_the_end(model: "PreTrainedModel", prompt: dict[str, Any], encoded: Encoded) -> set[int]:
    """Images whose last token ends a row: its query writes the first answer token, so it must stay."""
    found = set()
    ids, mask = prompt["input_ids"], prompt.get("attention_mask")
    for row in set(encoded.rows):
        attended = ids[row] if mask is None else ids[row][mask[row].bool()]
        if int(attended[-1]) == image_token_id(model):
            found.add(max(index for index, owner in enumerate(encoded.rows) if owner == row))
    return found
