"""The next turn of a conversation, on the cache that generate() returned for a pruned prompt."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveate.errors import InvalidInputs
from foveate.hf import names
from foveate.pruned import Pruned

if TYPE_CHECKING:
    from transformers.generation import GenerateDecoderOnlyOutput

PER_TOKEN = ("token_type_ids", "mm_token_type_ids")
REMEMBERED = ("input_ids", "attention_mask", "position_ids", *PER_TOKEN)


@dataclass(frozen=True, eq=False)
class Turn(Mapping[str, Any]):
    """Keyword arguments for ``model.generate(**turn)``: a conversation on its cache, up to a new turn.

    Attributes:
        tensors: the arguments; all of the conversation's tokens that are left, and its cache.
        columns: how many columns the conversation has with nothing pruned.
        images: what the new turn's images became, or None.
    """

    tensors: dict[str, Any]
    columns: int
    images: Pruned | None = None

    @property
    def rope_deltas(self) -> Tensor:
        """As `Pruned.rope_deltas`, of the conversation up to here."""
        return rope_deltas(self["position_ids"], self["attention_mask"])

    def __getitem__(self, key: str) -> Any:
        if key == names.ENCODED and self.images is not None:
            return self.images[key]  # built afresh: generate() expands it in place
        return self.tensors[key]

    def __iter__(self) -> Iterator[str]:
        yield from self.tensors
        if self.images is not None:
            yield names.ENCODED

    def __len__(self) -> int:
        return len(self.tensors) + (self.images is not None)


def rope_deltas(positions: Tensor, mask: Tensor) -> Tensor:
    """``[B, 1]``: how far the next position is ahead of the number of attended columns of ``mask [B, L]``."""
    latest = positions[1:].amax(dim=0) if positions.dim() == 3 else positions  # the first axis counts columns
    latest = latest.masked_fill(mask == 0, 0).amax(dim=1, keepdim=True)
    return latest + 1 - mask.sum(dim=1, keepdim=True)


def continued(
    asked: "Pruned | Turn", output: "GenerateDecoderOnlyOutput", following: "Tensor | Mapping[str, Any]"
) -> Turn:
    """Arguments for ``model.generate`` that go on after an answer, its cache kept, turn by turn.

    ::

        answer = model.generate(**pruned, return_dict_in_generate=True)
        turn = foveate.continued(pruned, answer, ids)
        answer = model.generate(**turn, return_dict_in_generate=True)
        turn = foveate.continued(turn, answer, ids)

    Positions go on where the unpruned conversation would be. One row at a time: answers of a batch end at
    different lengths. generate() goes on with the cache itself, so that an answer can be followed up once; for
    two ways on from it, pass ``copy.deepcopy(output)``.

    Args:
        asked: what was answered: the pruned prompt (`prune`'s, or `attach`'s ``last``), or the turn before.
        output: what ``model.generate(**asked, return_dict_in_generate=True)`` gave, or generate() inside
            `attach`.
        following: ``[1, M]`` ids of the new turn, from the end of the answer on, with the marks of turns that
            the chat template writes and without a BOS; or what the tokenizer returned for it. Where it holds
            new images, its own `prune`, of the new turn's inputs alone.

    Raises:
        InvalidInputs: a batch or beams, an output without its cache or that was continued already, other shapes.
    """
    cache_name, cache = names.returned_cache(output)
    if names.uneven(cache):
        raise InvalidInputs(
            "a cache whose layers hold different numbers of tokens, some were dropped inside the language model: "
            "allowed is to go on with generate() inside the block"
        )
    mask, answer = asked["attention_mask"], _answer(asked, output, cache)
    ids, steps, types = _following(asked, following)
    start = int(mask.sum() + asked.rope_deltas) + answer.shape[1]
    said = torch.arange(start - answer.shape[1], start, device=answer.device)
    new = mask.new_ones(1, answer.shape[1] + ids.shape[1])
    attended = torch.cat([mask, new], dim=1)
    before = asked["position_ids"]
    if before.dim() == 3:
        axes = torch.cat([before[1:], said.expand(3, 1, -1), (steps + start).expand(3, 1, -1)], dim=-1)
        positions = torch.cat([(attended.cumsum(-1) - 1).clamp(min=0)[None], axes])
    else:
        positions = torch.cat([before, said[None], steps + start], dim=1)
    tensors = {
        "input_ids": torch.cat([asked["input_ids"], answer, ids], dim=1),
        **{name: torch.cat([asked[name], torch.zeros_like(answer), types[name]], dim=1) for name in types},
        "attention_mask": attended,
        "position_ids": positions,
        cache_name: cache,
    }
    images = following if isinstance(following, Pruned) else None
    columns = ids.shape[1] if images is None else images.columns
    return Turn(tensors, asked.columns + answer.shape[1] + columns, images)


def _answer(asked: "Pruned | Turn", output: "GenerateDecoderOnlyOutput", cache: Any) -> Tensor:
    """``[1, n]``, the new tokens; all but the last are in the cache."""
    if cache is None:
        raise InvalidInputs(
            f"an output of type {type(output).__name__} without its cache: call generate with "
            "return_dict_in_generate=True"
        )
    sequences: Tensor = output.sequences
    width = asked["attention_mask"].shape[1]
    beams = getattr(output, "beam_indices", None) is not None
    if len(sequences) != 1 or len(asked["attention_mask"]) != 1 or beams:
        what = "beam search" if beams else f"{len(sequences)} sequences"
        raise InvalidInputs(f"an output of {what}: allowed is one conversation at a time, without beams")
    new = int(cache.get_seq_length()) + 1 - width
    if new < 1 or sequences.shape[1] - new not in (width, asked.columns):
        raise InvalidInputs(
            f"a cache of {width + new - 1} tokens for a prompt of {width} and an output of {sequences.shape[1]}: "
            "allowed is the output of this prompt, continued once"
        )
    return sequences[:, sequences.shape[1] - new :]


def _following(asked: "Pruned | Turn", following: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The new turn's ids ``[1, M]``, its positions from 0 ``[1, M]`` (or one row per axis), its token types."""
    per_token = [name for name in PER_TOKEN if name in asked]
    if isinstance(following, Pruned):
        if len(following["attention_mask"]) != 1:
            raise InvalidInputs(f"a new turn of {len(following['attention_mask'])} rows: allowed is one")
        real = following["attention_mask"][0].bool()
        steps = following["position_ids"][..., real]
        types = {name: following[name][:, real] for name in per_token}
        return following["input_ids"][:, real], steps[1:] if steps.dim() == 3 else steps, types
    ids = following.get("input_ids") if isinstance(following, Mapping) else following
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.shape[0] != 1 or ids.is_floating_point():
        found = f"of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else f"of type {type(ids).__name__}"
        raise InvalidInputs(f"following {found}: allowed are ids [1, M], or the prune of a turn with images")
    steps = torch.arange(ids.shape[1], device=ids.device)[None]
    return ids, steps, {name: torch.zeros_like(ids) for name in per_token}
