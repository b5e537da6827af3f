"""What text tokens attend to in one decoder layer, from its queries and keys."""

from typing import Any

import torch
from torch import Tensor

from foveate.errors import UnsupportedModel
from foveate.hf import names
from foveate.hf.attention import Seen, watched
from foveate.inside.deciding import Left
from foveate.inside.plan import Drop
from foveate.inside.tables import Tables
from foveate.methods.base import precise
from foveate.methods.inside import Inside

QUERIES = 256  # rows of the attention matrix formed at a time


def heard(
    tables: Tables, drop: Drop, left: Left | None, seen: Seen, entering: Tensor, raters: dict[Inside, Tensor]
) -> Tensor:
    """``[B, W]``: the attention that each row's raters pay to its columns in the layer that a drop hears.

    Args:
        tables: of the prompt.
        drop: what is to be ranked for.
        left: what the layer is given; None for the whole prompt.
        seen: queries and keys, of any number of copies of each row.
        entering: ``[B * copies, L, D]``, what entered the first layer.
        raters: by method, those chosen before; added to.
    """
    rows, width, device = len(tables.mask), seen.query.shape[2], seen.query.device
    step = len(seen.query) // rows
    query, key = seen.query[::step], seen.key[::step, :, :width]  # a static cache has more columns
    real = left.real if left is not None else None if tables.full else tables.mask
    allowed = None if real is None else real.to(device)[:, None]
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        weight = _weight(tables, drop.method, entering, raters)
        places = (tables.last if weight is None else tables.text)[drop.layer].to(device)
        query = torch.take_along_dim(query, places[:, None, :, None], dim=2) * seen.scaling
        if weight is None:
            return paid(query, key, allowed)
        causal = torch.arange(width, device=device) <= places[..., None]
        return paid(query, key, causal if allowed is None else causal & allowed, weight.to(device))


def _weight(tables: Tables, method: Inside, entering: Tensor, raters: dict[Inside, Tensor]) -> Tensor | None:
    """``[B, R]``: the text that rates, by 1 and 0; None for the last token."""
    asking = tables.asking
    if asking is None or not chooses_raters(method):
        return None
    if method not in raters:
        weight = asking.weights
        states = entering.detach()[:: len(entering) // len(weight)].to(weight.device)
        for rows, visual, text in asking.groups:
            chosen = method.raters(states[rows[:, None], visual], states[rows[:, None], text])
            assert chosen is not None
            padded = torch.nn.functional.pad(chosen.to(weight.dtype), (0, weight.shape[1] - chosen.shape[1]))
            weight = weight.index_copy(0, rows, padded)
        raters[method] = weight
    return raters[method]


def chooses_raters(method: Inside) -> bool:
    """Whether a method chooses among the text; else the last token rates."""
    return type(method).raters is not Inside.raters


def paid(query: Tensor, key: Tensor, allowed: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    """``[..., W]``: softmax over the columns, mean over heads and raters, in float32 or better.

    Args:
        query: ``[..., H, R, d]`` of the raters, scaled.
        key: ``[..., heads of keys, W, d]``.
        allowed: ``[..., R or 1, W]`` bool; None for all.
        weight: ``[..., R]``, which raters count, by 1 and 0; None for all.
    """
    if weight is None:
        return _weights(query, key, allowed).mean(dim=(-3, -2))
    total = query.new_zeros(())
    for start in range(0, query.shape[-2], QUERIES):
        rows = slice(start, start + QUERIES)
        some = allowed if allowed is None or allowed.shape[-2] == 1 else allowed[..., rows, :]
        weights = _weights(query[..., rows, :], key, some).mean(dim=-3)
        total = total + (weights * weight[..., rows, None]).sum(dim=-2)
    return total / weight.sum(dim=-1, keepdim=True)


def _weights(query: Tensor, key: Tensor, allowed: Tensor | None) -> Tensor:
    """``[..., H, R, W]``: the attention matrix; queries of heads that share a key are its rows."""
    heads, raters = query.shape[-3:-1]
    shared = query.reshape(*query.shape[:-3], key.shape[-3], heads // key.shape[-3] * raters, query.shape[-1])
    scores = (precise(shared) @ precise(key).mT).reshape(*query.shape[:-1], key.shape[-2])
    if allowed is not None:
        scores = scores.masked_fill(~allowed[..., None, :, :], float("-inf"))
    return scores.softmax(dim=-1)


class _EnoughError(Exception):
    """Ends a run of an attention layer of which nothing more is needed."""


@torch.no_grad()
def queries_and_keys(layer: Any, states: Tensor, options: dict[str, Any]) -> Seen:
    """What a decoder layer would hand to its attention function for ``states [B, W, D]``, which it is not given.

    The layer's norm and projections run for it; its attention, its output and its cache do not.

    Args:
        layer: with ``input_layernorm`` and ``self_attn``.
        states: before the tokens are dropped.
        options: the layer's other arguments for them.

    Raises:
        UnsupportedModel: its attention does not go through transformers' attention functions.
    """
    module, found = layer.self_attn, []

    def see(_: Any, seen: Seen) -> None:
        found.append(seen)
        raise _EnoughError

    given = {"attention_mask": None, names.cache_argument(module): None}
    given |= {name: options[name] for name in ("position_embeddings", "position_ids") if name in options}
    normed = layer.input_layernorm(states)
    with watched([module], see):
        try:
            type(module).forward(module, hidden_states=normed, **given)  # past hooks of accelerate
        except _EnoughError:
            return found[0]
    raise unseen(layer)


def unseen(layer: Any) -> UnsupportedModel:
    """What to raise for a layer whose attention was not seen."""
    return UnsupportedModel(f"{type(layer.self_attn).__name__} does not use transformers' attention functions")
