"""Attention in a vision tower's layer, and its keys, from what the layer hands to its attention function.

All sequences that a layer attends over (images, tiles, frames, windows) of one length are computed together, in a
few operations, in float32, outside autocast.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import MissingSignal, UnsupportedModel
from foveate.hf.attention import Seen, watched

SCORES = 1 << 25  # products of queries and keys formed at a time: 128 MiB


@contextmanager
def tapped(layer: nn.Module) -> Iterator[list[Seen]]:
    """Collects what a vision attention layer hands to its attention function in this thread.

    Raises:
        MissingSignal: it calls none that is known.
    """
    calls: list[Seen] = []
    with ExitStack() as block:
        try:
            block.enter_context(watched([layer], lambda _, seen: calls.append(seen)))
        except UnsupportedModel as error:
            raise MissingSignal(str(error)) from error
        yield calls
    if not calls:
        raise MissingSignal(f"{type(layer).__name__} does not use transformers' attention functions")


def keys(calls: Sequence[Seen]) -> tuple[Tensor, list[int]]:
    """``[P, heads, d]``: the keys of all positions, sequence after sequence, and the length of each sequence."""
    rows = [call.key.transpose(1, 2).flatten(0, 1) for call in calls]
    return _joined(rows), [length for call in calls for length in _lengths(call)]


@torch.no_grad()
def attention(calls: Sequence[Seen], first: bool, joint: bool = False) -> tuple[Tensor, list[int]]:
    """``[P]``: attention that each position receives, sequence after sequence, and the length of each sequence.

    Softmax over keys, mean over heads; of the first query where ``first`` (a CLS token), else the mean over all
    queries. In float32. Padding receives 0 and asks nothing.

    Args:
        calls: of one layer, as `tapped` collects them.
        first: whose attention.
        joint: whether the channels of all heads count as one head of their width.
    """
    parts = [part for call in calls for part in _unpacked(call)]
    groups: dict[tuple[int, bool], list[int]] = defaultdict(list)  # parts to be computed together
    for number, part in enumerate(parts):
        groups[part.key.shape[2], part.mask is None].append(number)
    received = [parts[0].query] * len(parts)  # replaced below
    with torch.autocast(parts[0].query.device.type, enabled=False):
        for numbers in groups.values():
            together = [parts[number] for number in numbers]
            found, sizes = _received(together, first, joint), [len(part.query) for part in together]
            for number, rows in zip(numbers, torch.split(found, sizes), strict=True):
                received[number] = rows.flatten()
    lengths = [length for part in parts for length in _lengths(part)]
    return found.flatten() if len(groups) == 1 else torch.cat(received), lengths


def _lengths(call: Seen) -> list[int]:
    if call.lengths is None:
        return [call.query.shape[2]] * len(call.query)
    return [int(length) for length in call.lengths.diff().tolist()]


def _unpacked(call: Seen) -> list[Seen]:
    """Parts of whose sequences each has one length: flash attention is given several in a batch of one."""
    if call.lengths is None:
        return [call]
    sizes = _lengths(call)
    pairs = zip(torch.split(call.query, sizes, dim=2), torch.split(call.key, sizes, dim=2), strict=True)
    return [Seen(query, key, None, call.scaling, None) for query, key in pairs]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _received(parts: Sequence[Seen], first: bool, joint: bool) -> Tensor:
    """``[S, n]`` of parts whose sequences are all of length ``n``."""
    query = _joined([part.query[:, :, :1] if first else part.query for part in parts])
    key, scaling = _joined([part.key for part in parts]), parts[0].scaling
    if key.shape[1] < query.shape[1]:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    if joint:
        scaling *= query.shape[1] ** -0.5
        query, key = (heads.transpose(1, 2).flatten(2)[:, None] for heads in (query, key))
    query, key = query.float() * scaling, key.float()
    if parts[0].mask is None:
        return _everywhere(query, key)
    return _where(query, key, _joined([_allowed(part.mask, part.query) for part in parts]))


def _blocks(query: Tensor, key: Tensor) -> Iterator[slice]:
    """Queries of which a part of the attention matrix is formed at a time."""
    rows = max(1, SCORES // (len(query) * query.shape[1] * key.shape[2]))
    for start in range(0, query.shape[2], rows):
        yield slice(start, start + rows)


def _everywhere(query: Tensor, key: Tensor) -> Tensor:
    """``[S, n]`` where every query may attend to every key."""
    sums = [(query[:, :, block] @ key.mT).softmax(dim=-1).sum(dim=(1, 2)) for block in _blocks(query, key)]
    total = sums[0] if len(sums) == 1 else torch.stack(sums).sum(dim=0)
    return total / (query.shape[1] * query.shape[2])


def _where(query: Tensor, key: Tensor, allowed: Tensor) -> Tensor:
    """``[S, n]`` where ``allowed [S, 1, 1 or n, n]`` says which keys a query may attend to."""
    asks = allowed.any(dim=2)[:, 0]  # [S, n]: a key that nobody may attend to is padding, and no query either
    rows = allowed.expand(-1, -1, key.shape[2], -1)
    total, count = torch.zeros_like(asks, dtype=torch.float32), torch.zeros_like(asks, dtype=torch.float32)
    for block in _blocks(query, key):
        scores = (query[:, :, block] @ key.mT).masked_fill(~rows[:, :, : query.shape[2]][:, :, block], -torch.inf)
        asking = asks[:, : query.shape[2]][:, block, None]
        total += (scores.softmax(dim=-1).mean(dim=1) * asking).nan_to_num().sum(dim=1)
        count += (rows[:, 0, : query.shape[2]][:, block] & asking).sum(dim=1)
    return total / count.clamp(min=1)


def _allowed(mask: Any, query: Tensor) -> Tensor:
    """``[S, 1, n or 1, n]`` bool: which keys a query may attend to."""
    if hasattr(mask, "mask_mod"):  # flex attention's
        from torch.nn.attention.flex_attention import create_mask  # it imports the compiler

        n = query.shape[2]
        mask = create_mask(mask.mask_mod, len(query), 1, n, n, query.device.type)
    if mask.dim() == 2:
        mask = mask[:, None, None]
    allowed: Tensor = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return allowed.expand(len(query), *allowed.shape[1:])
