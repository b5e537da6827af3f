"""What text tokens attend to in one decoder layer, from its queries and keys, under every attention backend.

As in the vision tower (`vision_attention`), the layer's attention runs once more as a shallow copy whose attention
function is ours; nothing of the model changes.
"""

import copy
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import UnsupportedModel
from foveate.hf import names
from foveate.methods.base import precise

NAME = "foveate_queries_and_keys"  # of our function among those of transformers
_HERE = threading.local()  # .found: queries and keys of this thread's layer, scaled


@torch.no_grad()
def attention_paid(
    layer: Any, states: Tensor, options: dict[str, Any], mask: Tensor, raters: Sequence[Tensor]
) -> Tensor:
    """``[B, L]``: the attention that each row's raters pay to its columns, mean over heads and raters, in float32.

    Args:
        layer: a decoder layer of transformers, with ``input_layernorm`` and ``self_attn``.
        states: ``[B, L, D]``, what it is given.
        options: its other arguments.
        mask: ``[B, L]`` bool, the columns that may be attended to.
        raters: per row, the columns whose queries count.

    Raises:
        UnsupportedModel: its attention does not go through transformers' attention functions.
    """
    query, key = _queries_and_keys(layer, states, options)
    columns = torch.arange(states.shape[1], device=states.device)
    return torch.stack(
        [
            paid(query[row][:, rating], key[row], mask[row] & (columns <= rating[:, None]))
            for row, rating in enumerate(raters)
        ]
    )


def paid(query: Tensor, key: Tensor, allowed: Tensor) -> Tensor:
    """``[L]``: softmax over the columns, mean over heads and raters, in float32 or better.

    Args:
        query: ``[H, R, d]`` of the raters, scaled.
        key: ``[heads of keys, L, d]``.
        allowed: ``[R, L]`` bool.
    """
    keys = precise(key).repeat_interleave(query.shape[0] // key.shape[0], dim=0)
    scores = precise(query) @ keys.transpose(1, 2)
    weights: Tensor = scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1).mean(dim=(0, 1))
    return weights


def _queries_and_keys(layer: Any, states: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    names.attention_functions().register(NAME, _collect)
    module = layer.self_attn
    twin = copy.copy(module)  # shares all weights
    twin.config = copy.copy(module.config)
    twin.config._attn_implementation = NAME
    own: dict[str, Any] = {
        name: options[name] for name in ("position_embeddings", "position_ids") if name in options
    }
    own |= {"attention_mask": None, names.cache_argument(module): None}
    _HERE.found = []
    try:
        normed = layer.input_layernorm(states)
        type(module).forward(twin, hidden_states=normed, **own)
        found: list[tuple[Tensor, Tensor]] = _HERE.found
    finally:
        del _HERE.found
    if not found:
        raise UnsupportedModel(f"{type(module).__name__} does not use transformers' attention functions")
    return found[0]


def _collect(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """An attention function as transformers calls them; ``query`` and ``key`` are ``[B, heads, L, d]``."""
    scaling = options.get("scaling")
    _HERE.found.append((query * (query.shape[-1] ** -0.5 if scaling is None else scaling), key))
    return query.transpose(1, 2), None
