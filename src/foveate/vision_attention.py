"""Attention inside the vision tower, from the queries and keys of one layer, under every attention backend.

The layer itself is run once more on its inputs, as a shallow copy whose attention function is ours: it is handed
queries and keys as the layer made them, norms and rotations included, and never forms a whole attention matrix.
The model, its backend and its outputs stay as they are.
"""

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import MissingSignal
from foveate.hf import names

NAME = "foveate_attention_received"  # of our function among those of transformers
QUERIES = 256  # rows of the attention matrix formed at a time
_HERE = threading.local()  # .found: what our function saw in this thread; .read: what is made of it
Read = Callable[[Tensor, Tensor, Tensor | None, float], list[Tensor]]


def attention_tap(layer: nn.Module, first: bool, joint: bool = False) -> AbstractContextManager[list[Tensor]]:
    """Collects ``[n]`` per sequence that ``layer`` attends over: an image, a tile, a frame, in order.

    Softmax over keys, mean over heads; of the first query where ``first`` (a CLS token), else the mean over all
    queries. In float32. Padding gets 0 and asks nothing.

    Args:
        layer: a vision attention module of transformers.
        first: whose attention.
        joint: whether the channels of all heads count as one head of their width.
    """
    return _tap(layer, partial(_received, first=first, joint=joint))


def key_tap(layer: nn.Module) -> AbstractContextManager[list[Tensor]]:
    """Collects the keys ``[n, heads, d]`` per sequence that ``layer`` attends over, padding included.

    They are what the layer hands to its attention function: norms and rotations are in them.
    """
    return _tap(layer, lambda query, key, mask, scaling: list(key.transpose(1, 2).unbind(0)))


@contextmanager
def _tap(layer: nn.Module, read: Read) -> Iterator[list[Tensor]]:
    names.attention_functions().register(NAME, _collect)
    captured: list[Tensor] = []
    thread = threading.get_ident()  # other threads may run the same module at the same time

    # Without keywords it is called in another thread, where torch finds the hook half removed.
    def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any] | None = None) -> None:
        if threading.get_ident() == thread and keywords is not None:
            captured.extend(_run_again(module, arguments, keywords, read))

    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield captured
    finally:
        handle.remove()


@torch.no_grad()
def _run_again(module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], read: Read) -> list[Tensor]:
    twin = copy.copy(module)  # shares all weights
    twin.config = copy.copy(module.config)
    twin.config._attn_implementation = NAME
    _HERE.found, _HERE.read = [], read
    try:
        type(module).forward(twin, *arguments, **keywords)  # past hooks of accelerate that hold on to `module`
        found: list[Tensor] = _HERE.found
    finally:
        del _HERE.found, _HERE.read
    if not found:
        raise MissingSignal(f"{type(module).__name__} does not use transformers' attention functions")
    return found


def _collect(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """An attention function as transformers calls them; ``query`` and ``key`` are ``[B, heads, n, d]``."""
    scaling = options.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    lengths = options.get("cu_seq_lens_q")  # how flash attention is told of several sequences in one
    sizes = [query.shape[2]] if lengths is None else lengths.diff().tolist()
    for q, k in zip(torch.split(query, sizes, dim=2), torch.split(key, sizes, dim=2), strict=True):
        _HERE.found.extend(_HERE.read(q, k, attention_mask, scaling))
    return value.transpose(1, 2), None


def _received(
    query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, first: bool, joint: bool
) -> list[Tensor]:
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    if joint:
        scaling *= query.shape[1] ** -0.5
        query, key = (heads.transpose(1, 2).flatten(2)[:, None] for heads in (query, key))
    return list(_attention(query.float() * scaling, key.float(), _allowed(mask, query), first).unbind(0))


def _allowed(mask: Tensor | None, query: Tensor) -> Tensor:
    """``[B, 1, n or 1, n]`` bool: which keys a query may attend to."""
    if mask is None:
        return query.new_ones(len(query), 1, 1, query.shape[2], dtype=torch.bool)
    if mask.dim() == 2:
        mask = mask[:, None, None]
    allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return allowed.expand(len(query), *allowed.shape[1:])


def _attention(query: Tensor, key: Tensor, allowed: Tensor, first: bool) -> Tensor:
    """``[B, n]``: attention that each key receives, from the first query or on average."""
    n = query.shape[2]
    asks = allowed.any(dim=2)[:, 0]  # [B, n]: a key that nobody may attend to is padding, and no query either
    rows = allowed.expand(-1, -1, n, -1)
    queries = range(0, 1 if first else n, QUERIES)
    total, count = torch.zeros_like(asks, dtype=torch.float32), torch.zeros_like(asks, dtype=torch.float32)
    for start in queries:
        part = slice(start, min(start + QUERIES, 1 if first else n))
        scores = (query[:, :, part] @ key.transpose(2, 3)).masked_fill(~rows[:, :, part], float("-inf"))
        weights = scores.softmax(dim=-1).mean(dim=1) * asks[:, part, None]
        total += weights.nan_to_num().sum(dim=1)
        count += (rows[:, 0, part] & asks[:, part, None]).sum(dim=1)
    return total / count.clamp(min=1)
