"""What follows on the cache of a pruned prompt: a turn that generate() is asked as of stock, or steps by hand."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveate.chat.memory import Memory
from foveate.chat.turns import PER_TOKEN, rope_deltas
from foveate.errors import InvalidInputs
from foveate.flow.prompt import mask_of
from foveate.hf import names

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# What generate() is given for the text of a prompt; pruned ones bring their own.
TEXT = ("input_ids", "attention_mask", "position_ids", "cache_position", *PER_TOKEN)


def next_turn(
    model: "PreTrainedModel", memory: Memory, cache: Any, arguments: dict[str, Any]
) -> tuple[Memory, dict[str, Any]]:
    """What the cache holds, and generate()'s arguments for a text turn with the whole conversation's ids.

    Raises:
        InvalidInputs: the cache is not as it was left, the ids do not go on from it, or what cannot be is masked.
    """
    memory = memory.held(cache)
    _check_model(model, memory)
    ids: Tensor = arguments["input_ids"]
    _check_rows(memory, ids)
    if _is_pruned(memory, arguments):
        return memory, {name: arguments[name] for name in TEXT if name in arguments}
    length = int(cache.get_seq_length())
    stored = memory.columns + length - memory.width
    if ids.shape[1] <= stored:
        raise InvalidInputs(
            f"input_ids of {ids.shape[1]} columns with a cache of {stored}: allowed is the whole conversation, as "
            "generate() returned it, and the new turn"
        )
    later = ids[:, memory.columns :]
    mask = _next_mask(memory, mask_of(model, arguments), length, ids.shape[1] - stored)
    _check_shown(memory, mask)
    before = {name: value.to(ids.device) for name, value in memory.tensors.items()}
    mask = mask.to(ids.device)
    types = {
        name: torch.cat([before[name], torch.zeros_like(later)], dim=1) for name in PER_TOKEN if name in before
    }
    positions = _next_positions(memory, mask)
    return memory, {
        "input_ids": torch.cat([before["input_ids"], later], dim=1),
        **types,
        "attention_mask": mask,
        "position_ids": torch.cat([before["position_ids"], positions.to(ids.device)], dim=-1),
    }


def next_step(
    model: "PreTrainedModel", memory: Memory, cache: Any, arguments: Mapping[str, Any]
) -> tuple[Memory, dict[str, Tensor]]:
    """What the cache holds, and the mask and the positions of a forward on it, for its new tokens alone.

    Raises:
        InvalidInputs: the cache is not as it was left, or lost tokens inside the language model.
    """
    memory = memory.held(cache)
    _check_model(model, memory)
    if memory.live is not None:
        raise InvalidInputs(
            "the KV cache of a prompt that lost tokens inside the language model: allowed is to go on with "
            "generate()"
        )
    given = arguments.get("input_ids")
    given = arguments["inputs_embeds"] if given is None else given
    _check_rows(memory, given)
    new = given.shape[1]
    mask = _next_mask(memory, arguments.get("attention_mask"), int(cache.get_seq_length()), new).to(given.device)
    positions = _next_positions(memory, mask)[..., -new:].to(given.device)
    return memory, {"attention_mask": mask, "position_ids": positions}


def _check_model(model: "PreTrainedModel", memory: Memory) -> None:
    """Refuse a model that numbers or drops otherwise than the one that filled the cache.

    Raises:
        InvalidInputs: it does.
    """
    if memory.live is not None and not memory.live.belongs_to(model):
        raise InvalidInputs(
            "a copy of a KV cache, or another model's, whose tokens were dropped inside the language model: "
            "allowed is the cache itself, with its own model"
        )
    axes = names.rope_index(model) is not None
    if axes != (memory.tensors["position_ids"].dim() == 3):
        raise InvalidInputs(
            f"a KV cache of another type of model given to {type(model).__name__}: allowed is its own"
        )


def _next_positions(memory: Memory, mask: Tensor) -> Tensor:
    """Position ids ``[B, n]`` (``[4, B, n]``) of the columns of ``mask [B, W + n]`` behind the prompt."""
    counted = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
    before = memory.tensors["position_ids"]
    deltas = rope_deltas(before, memory.tensors["attention_mask"])
    later = (counted + deltas.to(mask.device))[:, memory.width :]
    if before.dim() == 2:
        return later
    return torch.stack([counted[:, memory.width :], *[later] * (len(before) - 1)])


def _next_mask(memory: Memory, given: Any, length: int, new: int) -> Tensor:
    """``[B, length + new]``: the mask of a pruned conversation, for one that is given as of stock, or None.

    Raises:
        InvalidInputs: it fits neither the whole conversation nor the pruned one.
    """
    before: Tensor = memory.tensors["attention_mask"]
    later = length + new - memory.width
    if given is None:
        return torch.cat([before, before.new_ones(len(before), later)], dim=1)
    if not isinstance(given, Tensor) or given.dim() != 2 or len(given) != len(before):
        found = f"shape {tuple(given.shape)}" if isinstance(given, Tensor) else f"type {type(given).__name__}"
        raise InvalidInputs(f"attention_mask of {found} with a cache of {len(before)} rows: allowed is [B, L]")
    if given.shape[1] == memory.columns + later:
        return torch.cat([before.to(given.device), given[:, memory.columns :]], dim=1)
    if given.shape[1] == memory.width + later:
        return given
    raise InvalidInputs(
        f"attention_mask of {given.shape[1]} columns: allowed is the whole conversation's, "
        f"{memory.columns + later}"
    )


def _check_shown(memory: Memory, mask: Tensor) -> None:
    """Refuse masked text behind a prompt that lost tokens inside: those layers' masks know of the prompt's alone.

    Raises:
        InvalidInputs: some of ``mask [B, W + n]`` hides it.
    """
    hidden = 0 if memory.live is None else int((mask[:, memory.width :] == 0).sum())
    if hidden:
        raise InvalidInputs(
            f"attention_mask (or the padding id, without one) hides {hidden} tokens behind a prompt that lost "
            "some inside the language model: allowed is none, such as one row at a time"
        )


def _is_pruned(memory: Memory, arguments: Mapping[str, Any]) -> bool:
    """Whether the caller's arguments are a turn of `continued`: they begin with the pruned prompt's ids."""
    ids, before = arguments["input_ids"], memory.tensors["input_ids"]
    if arguments.get("position_ids") is None or ids.shape[1] <= memory.width:
        return False
    return torch.equal(ids[:, : memory.width].to(before.device), before)


def _check_rows(memory: Memory, given: Tensor) -> None:
    """Refuse another number of rows than the cache has.

    Raises:
        InvalidInputs: it is another.
    """
    count = len(memory.tensors["attention_mask"])
    if len(given) != count:
        raise InvalidInputs(
            f"input_ids of {len(given)} rows with a KV cache of {count}: allowed is as many "
            "(cache.batch_repeat_interleave, cache.batch_select_indices)"
        )
