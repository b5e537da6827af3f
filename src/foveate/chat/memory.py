"""What a KV cache holds of a pruned conversation, written on the cache itself: copies and pickles know it, too."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self
from weakref import ref

from torch import Tensor

from foveate.chat.mark import Mark
from foveate.chat.turns import REMEMBERED
from foveate.errors import InvalidInputs
from foveate.inside.dropping import Dropping

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
    mark: Mark | None = None
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
            replace(self, length=None).write(cache)

    def end(self, cache: Any) -> None:
        """Note that the call ended well, and what the cache holds now."""
        if cache is not None:
            length = int(cache.get_seq_length())
            mark = self.mark or Mark.of(cache, length - self.width)
            replace(self, length=length, mark=mark).write(cache)

    def write(self, cache: Any) -> None:
        """Put it on the cache as it is."""
        setattr(cache, NAME, self)

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
        return replace(self._of_rows(cache)._cropped(max(0, cut)), length=length)

    def _of_rows(self, cache: Any) -> "Memory":
        """The same with the prompt's rows as they lie in the cache."""
        count = len(self.tensors["attention_mask"])
        rows = None if self.mark is None else self.mark.rows(cache, count)
        if rows is None and count > 1:
            raise InvalidInputs(
                f"a KV cache of {count} rows that cannot be told apart (quantized, sliding in all layers, or "
                "cropped into its prompt): allowed is one row"
            )
        if self.mark is None or rows is None:
            return self
        if self.live is not None and rows.tolist() != list(range(count)):
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


def memory_of(cache: Any) -> Memory | None:
    """What is known of a cache; None of one that no pruned prompt filled."""
    return getattr(cache, NAME, None)


def forget(cache: Any) -> None:
    """Take off what was known: the cache is empty."""
    if memory_of(cache) is not None:
        delattr(cache, NAME)
