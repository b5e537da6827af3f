"""What a KV cache holds of a pruned conversation, written on the cache itself: copies and pickles know it, too."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self
from weakref import ref

import torch
from torch import Tensor

from foveate.chat.turns import REMEMBERED, rope_deltas
from foveate.dropping import Dropping
from foveate.errors import InvalidInputs
from foveate.hf import names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from foveate.pruned import Pruned

NAME = "_foveate_memory"


class Live:
    """What a language model goes on dropping. It belongs to one cache object, not to its copies."""

    def __init__(self, dropped: Dropping, model: "PreTrainedModel") -> None:
        self.dropped: Dropping | None = dropped
        self._model = ref(model)

    def belongs_to(self, model: "PreTrainedModel") -> bool:
        """Whether it is still here, and of this model."""
        return self.dropped is not None and self._model() is model

    def __reduce__(self) -> Any:
        return _lost, ()


def _lost() -> Live:
    lost = Live.__new__(Live)
    lost.dropped = None
    return lost


@dataclass(frozen=True, eq=False)
class Memory:
    """The pruned prompt that a cache begins with; all that follows is text, token for token.

    Attributes:
        tensors: the prompt's ids, mask, positions and token types ``[B, W]`` (positions ``[4, B, W]`` where they
            have several axes).
        columns: how many columns the prompt had before pruning.
        after: columns of text behind the last visual token of any row.
        length: tokens in the cache when a call ended; None while one runs, and after it was interrupted.
        mark: what tells rows apart, and this content from another: keys of a late layer at one column.
        live: what the language model goes on dropping.
    """

    tensors: dict[str, Tensor]
    columns: int
    after: int
    length: int | None = None
    mark: "Mark | None" = None
    live: Live | None = None

    @classmethod
    def of(cls, pruned: "Pruned", stands: Tensor, live: Live | None = None) -> Self:
        """What is to be known of a pruned prompt, with ``stands [B, W]`` its visual tokens."""
        tensors = {name: pruned[name] for name in REMEMBERED if name in pruned}
        behind = stands.flip(1).int().cumsum(dim=1) == 0
        after = int(behind.sum(dim=1).amin()) if len(behind) else 0
        return cls(tensors, pruned.columns, after, live=live)

    @property
    def width(self) -> int:
        """Columns of the pruned prompt."""
        return int(self.tensors["attention_mask"].shape[1])

    def begin(self, cache: Any) -> None:
        """Note that a call fills the cache, and has not ended."""
        if cache is not None:
            setattr(cache, NAME, replace(self, length=None))

    def end(self, cache: Any) -> None:
        """Note that the call ended well, and what the cache holds now."""
        if cache is not None:
            length = int(cache.get_seq_length())
            mark = self.mark or Mark.of(cache, length - self.width)
            setattr(cache, NAME, replace(self, length=length, mark=mark))

    def held(self, cache: Any) -> "Memory":
        """What the cache holds now, of its own prompt: rows may be chosen or repeated, later tokens taken back.

        Raises:
            InvalidInputs: it was filled on elsewhere or its call was interrupted, or images were cut.
        """
        if self.length is None:
            raise InvalidInputs(
                "a KV cache whose call was interrupted: allowed is one whose call ended, or cache.reset()"
            )
        length, known = int(cache.get_seq_length()), self.length
        if length > known:
            raise InvalidInputs(
                f"a KV cache of {length} tokens that had {known} when it was last seen: allowed is one that was "
                "filled inside an attach block alone"
            )
        cut = self.width - length
        if cut > 0 and (cut > self.after or self.live is not None):
            raise InvalidInputs(
                f"a KV cache of {length} tokens, cropped into its prompt of {self.width}: allowed is to crop text "
                f"behind the images, {0 if self.live else self.after} tokens here"
            )
        return self._of_rows(cache)._cropped(max(0, cut))

    def _of_rows(self, cache: Any) -> "Memory":
        """The same with the prompt's rows as they lie in the cache."""
        if self.mark is None:
            return self
        rows = self.mark.rows(cache, len(self.tensors["attention_mask"]))
        if rows is None:
            return self
        if self.live is not None and rows.tolist() != list(range(len(self.tensors["attention_mask"]))):
            raise InvalidInputs(
                "a KV cache with rows chosen or repeated after tokens were dropped inside the language model: "
                "allowed is the cache as generate() left it"
            )
        picked = {
            name: value.index_select(value.dim() - 2, rows.to(value.device))
            for name, value in self.tensors.items()
        }
        mark = replace(self.mark, keys=self.mark.keys.index_select(0, rows.to(self.mark.keys.device)))
        return replace(self, tensors=picked, mark=mark)

    def _cropped(self, cut: int) -> "Memory":
        if cut == 0:
            return self
        tensors = {name: value[..., : self.width - cut] for name, value in self.tensors.items()}
        return replace(self, tensors=tensors, columns=self.columns - cut, after=self.after - cut, mark=None)


@dataclass(frozen=True, eq=False)
class Mark:
    """Keys ``[B, ...]`` that one layer holds for the prompt's last column: they follow from all that is before."""

    layer: int
    column: int
    keys: Tensor

    @classmethod
    def of(cls, cache: Any, behind: int) -> "Mark | None":
        """The mark of a cache with ``behind`` tokens after its prompt; None where no layer keeps plain keys."""
        layers = names.at(cache, "layers")
        for number in reversed(range(len(layers))):
            keys = names.plain_keys(layers[number])
            if keys is not None:
                column = int(layers[number].get_seq_length()) - behind - 1
                return cls(number, column, keys[:, :, column].clone())
        return None

    def rows(self, cache: Any, count: int) -> Tensor | None:
        """Which of the prompt's rows each row of the cache is; None where that cannot be told.

        Raises:
            InvalidInputs: some are none of them.
        """
        keys = names.plain_keys(cache.layers[self.layer])
        if keys is None or keys.shape[2] <= self.column:
            return None
        found = keys[:, :, self.column].flatten(1).float()
        known = self.keys.to(found.device).flatten(1).float()
        apart = torch.cdist(found, known)
        nearest, rows = apart.min(dim=1)
        if not bool((nearest <= 0.02 * known.norm(dim=1).amax()).all()):
            raise InvalidInputs(
                "a KV cache that holds other tokens than when it was last seen: allowed is one that was filled "
                "inside an attach block alone"
            )
        return rows // (len(known) // count)


def memory_of(cache: Any) -> Memory | None:
    """What is known of a cache; None of one that no pruned prompt filled."""
    return getattr(cache, NAME, None)


def forget(cache: Any) -> None:
    """Take off what was known: the cache is empty."""
    if memory_of(cache) is not None:
        delattr(cache, NAME)


def next_positions(memory: Memory, mask: Tensor) -> Tensor:
    """Position ids ``[B, n]`` (``[4, B, n]``) of the columns of ``mask [B, W + n]`` behind the prompt."""
    counted = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
    before = memory.tensors["position_ids"]
    deltas = rope_deltas(before, memory.tensors["attention_mask"])
    later = (counted + deltas.to(mask.device))[:, memory.width :]
    if before.dim() == 2:
        return later
    return torch.stack([counted[:, memory.width :], *[later] * (len(before) - 1)])


def next_mask(memory: Memory, given: Any, length: int, new: int) -> Tensor:
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


def check_rows(memory: Memory, given: Mapping[str, Any]) -> None:
    """Refuse another number of rows than the cache has.

    Raises:
        InvalidInputs: it is another.
    """
    ids = given.get("input_ids")
    if isinstance(ids, Tensor) and len(ids) != len(memory.tensors["attention_mask"]):
        raise InvalidInputs(
            f"input_ids of {len(ids)} rows with a KV cache of {len(memory.tensors['attention_mask'])}: allowed is "
            "as many (cache.batch_repeat_interleave, cache.batch_select_indices)"
        )
