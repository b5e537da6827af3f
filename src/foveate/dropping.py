"""Inside a block, decoder layers are given fewer visual tokens the deeper they are, and keep shorter caches.

Layers are given states, positions and masks; pre-hooks cut all three to the columns that are left. Nothing else
changes: a later layer stores fewer keys, and what is generated is masked by what its layer has stored.
"""

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveate.drops import Drop, Parts, decoder_of, drops_of, images_of
from foveate.encode import placeholders
from foveate.families import Family
from foveate.hf import names
from foveate.layer_attention import attention_paid
from foveate.methods.base import top
from foveate.methods.inside import Inside, Recycled
from foveate.pruned import Pruned

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class Left:
    """The prompt from one drop on.

    Attributes:
        columns: ``[B, W]`` of the prompt, ascending, padded on the prompt's side.
        real: ``[B, W]`` bool, those that are no padding.
        within: ``[B, W]``, where they are among the columns before the drop.
    """

    columns: Tensor
    real: Tensor
    within: Tensor


@dataclass(frozen=True, eq=False)
class Dropped:
    """What a drop took of an image, so that another pass takes it again: columns among those before the drop."""

    row: int
    columns: Tensor
    scores: Tensor


@dataclass(eq=False)
class _Pass:
    """One pass through the language model.

    Attributes:
        cache: or None.
        width: columns of the prompt and of what is generated, of all that was seen.
        cached: how many of them were seen in a pass before.
        entering: ``[B, L, D]``, what enters the first layer.
        deepstack: per layer ``[n, D]``, what is added behind it at the ``visual [B, L]`` columns.
        scores: what was heard for the next drop, ``[B, W]``.
        mask: of the layers since the latest drop, which may be None itself; None before it is made.
    """

    cache: Any
    width: int
    cached: int
    entering: Tensor
    deepstack: Sequence[Tensor]
    visual: Tensor | None
    scores: Tensor | None = None
    mask: tuple[Any] | None = None


class Dropping:
    """The drops of one prompt, and what is left where.

    Args:
        model: unwrapped.
        family: its family.
        pruned: the prompt as it enters the language model.
        parts: methods with their budgets.

    Raises:
        UnsupportedModel: layers that do not attend to all that is before, or a family whose tokens look ahead.
        InvalidBudget: fewer than are always kept, or what a method cannot serve.
        InvalidOption: a layer that is not there.
    """

    def __init__(self, model: "PreTrainedModel", family: Family, pruned: Pruned, parts: Parts) -> None:
        self._decoder: Any = decoder_of(model, family)
        self._cache_name = names.cache_argument(self._decoder)
        self._entered = pruned.kept
        self._images = images_of(model, pruned)
        self._mask = pruned["attention_mask"].bool()
        self._text = self._mask & ~placeholders(model, family, pruned["input_ids"])
        self._on_left = bool(self._mask[:, -1].all())
        self._drops = drops_of(len(self._decoder.layers), self._images, parts)
        self._left: dict[int, Left] = {}
        self._kept: dict[int, list[Tensor]] = {}
        self._dropped: dict[int, list[Dropped]] = {}
        self._thread = threading.get_ident()
        self._pass: _Pass | None = None
        self._cache: Any = None  # of the passes that are the prompt's: a weak reference, or None before the first
        self._entered_with: Tensor | None = None  # what entered the first layer then, where there is no cache

    @property
    def kept(self) -> dict[int, list[Tensor]]:
        """By layer that tokens were dropped before, per image: ascending indices left of those that entered."""
        return self._kept

    @property
    def kept_at_last(self) -> list[Tensor]:
        """Per image, what `kept` says of the last drop, as indices among the image's own tokens."""
        if not self._kept:
            return self._entered
        kept = self._kept[max(self._kept)]
        return [entered[left.to(entered.device)] for entered, left in zip(self._entered, kept, strict=True)]

    @property
    def tokens_per_layer(self) -> list[list[int]]:
        """Per image, the tokens each layer is given, with what stands for dropped ones; before a pass, without."""
        found = []
        for number, image in enumerate(self._images):
            count, counts = len(image.columns), []
            for layer in range(len(self._decoder.layers)):
                if layer in self._kept:
                    count = len(self._kept[layer][number])
                elif layer in self._drops:
                    count = self._drops[layer].counts[number]
                counts.append(count)
            found.append(counts)
        return found

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Drop in this thread's passes through the language model."""
        self._thread = threading.get_ident()
        handles = [self._decoder.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for index, layer in enumerate(self._decoder.layers):
            handles.append(layer.register_forward_pre_hook(self._before(index), with_kwargs=True))
            handles.append(layer.register_forward_hook(self._behind(index)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._pass = None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _begin(self, module: Any, arguments: tuple[Any, ...], options: dict[str, Any] | None = None) -> Any:
        if options is None or threading.get_ident() != self._thread:
            return None
        entering, cache = options["inputs_embeds"], options.get(self._cache_name)
        self._pass = None
        if entering is None or not self._is_own(entering, cache):
            return None
        cached = 0 if cache is None else int(cache.get_seq_length())
        layers = options.get(names.DEEPSTACK)
        deepstack = [] if layers is None else list(layers)
        self._pass = _Pass(
            cache, cached + entering.shape[1], cached, entering, deepstack, options.get(names.VISUAL)
        )
        return (arguments, {**options, names.DEEPSTACK: None}) if deepstack else None

    def _is_own(self, entering: Tensor, cache: Any) -> bool:
        """Whether a pass is one of the prompt's: callers' functions may run the model on something else."""
        rows, width = self._mask.shape
        if not self._left:  # the first
            if entering.shape[1] != width or len(entering) % rows:
                return False
            self._cache = None if cache is None else weakref.ref(cache)
            self._entered_with = entering.detach() if cache is None else None
            return True
        if self._cache is not None:
            return cache is self._cache()
        first = self._entered_with
        if cache is not None or first is None or len(first) != len(entering) or entering.shape[1] < width:
            return False
        return torch.equal(entering[:, :width], first)

    def _before(self, index: int) -> Any:
        """The pre-hook of a layer."""

        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def hook(layer: Any, arguments: tuple[Any, ...], options: dict[str, Any] | None = None) -> Any:
            now = self._pass
            if options is None or now is None or threading.get_ident() != self._thread:
                return None
            states = arguments[0] if arguments else options["hidden_states"]
            options = {name: value for name, value in options.items() if name != "hidden_states"}
            given = self._cut(now, index - 1, states, options)
            drop, following = self._drops.get(index), self._drops.get(index + 1)
            if drop is not None:
                if now.cached == 0:
                    if drop.hears == index:
                        self._hear(now, index - 1, drop.method, layer, states, given)
                    states = self._shorter(now, drop, states)
                now.mask = None
                given = self._cut(now, index, states, options)
            if following is not None and following.hears == index and now.cached == 0:
                self._hear(now, index, following.method, layer, states, given)
            return (states, *arguments[1:]), given

        return hook

    def _behind(self, index: int) -> Any:
        """The hook that adds to visual states what deepstack adds behind a layer."""

        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def hook(layer: Any, arguments: tuple[Any, ...], output: Any) -> Any:
            now = self._pass
            if now is None or index >= len(now.deepstack) or threading.get_ident() != self._thread:
                return None
            assert now.visual is not None
            visual, left = now.visual.to(self._mask.device), self._at(index)
            order = (visual.flatten().cumsum(dim=0) - 1).view_as(visual)
            if left is not None:
                columns, real = self._extended(now, left, len(visual))
                visual = torch.take_along_dim(visual, columns, dim=1) & real
                order = torch.take_along_dim(order, columns, dim=1)
            visual, order = visual.to(output.device), order.to(output.device)
            states = output.clone()
            states[visual] += now.deepstack[index].to(output.device, output.dtype)[order[visual]]
            return states

        return hook

    def _at(self, index: int) -> Left | None:
        """What is left at a layer; None for the whole prompt."""
        found = [self._left[layer] for layer in sorted(self._left) if layer <= index]
        return found[-1] if found else None

    def _columns(self, left: Left | None) -> tuple[Tensor, Tensor]:
        """``columns`` and ``real`` of what is left, or of the whole prompt."""
        if left is not None:
            return left.columns, left.real
        whole = torch.arange(self._mask.shape[1], device=self._mask.device)
        return whole.expand(len(self._mask), -1), self._mask

    def _extended(self, now: _Pass, left: Left, batch: int) -> tuple[Tensor, Tensor]:
        """``columns`` and ``real`` with the columns of later tokens behind, for a batch of copies of each row."""
        copies, width = batch // len(self._mask), self._mask.shape[1]
        columns, real = (part.repeat_interleave(copies, dim=0) for part in (left.columns, left.real))
        new = torch.arange(width, now.width, device=columns.device).expand(batch, -1)
        return torch.cat([columns, new], dim=1), torch.cat([real, torch.ones_like(new, dtype=torch.bool)], dim=1)

    def _cut(self, now: _Pass, index: int, states: Tensor, options: dict[str, Any]) -> dict[str, Any]:
        """A layer's other arguments, for what is left at layer ``index``; layers alike share one mask."""
        left = self._at(index)
        if left is None:
            return options
        cut = dict(options)
        if now.mask is not None and now.cached:
            cut["attention_mask"] = now.mask[0]
            return cut
        columns, real = (part.to(states.device) for part in self._extended(now, left, len(states)))
        if now.cached == 0:
            cut["position_embeddings"] = tuple(
                torch.take_along_dim(part, columns[..., None].to(part.device), dim=-2)
                for part in options["position_embeddings"]
            )
            if options.get("position_ids") is not None:  # flash attention takes gaps for packed sequences
                cut["position_ids"] = torch.arange(columns.shape[1], device=states.device).expand(len(columns), -1)
        if now.mask is None:
            attended = None if bool(real.all()) else real
            now.mask = (names.causal_mask(self._decoder.config, states, attended, now.cache, index),)
        cut["attention_mask"] = now.mask[0]
        return cut

    def _hear(
        self, now: _Pass, index: int, method: Inside, layer: Any, states: Tensor, given: dict[str, Any]
    ) -> None:
        """Scores for the next drop, unless it was decided in an earlier pass; ``index`` says what is left."""
        left, copies = self._at(index), len(states) // len(self._mask)
        columns, real = self._columns(left)
        if now.width > self._mask.shape[1]:
            return
        options = {
            **given,
            "position_embeddings": tuple(_rows(part, copies) for part in given["position_embeddings"]),
        }
        raters = []
        for row in range(len(self._mask)):
            rating = self._raters(now, method, row, copies)
            raters.append((torch.isin(columns[row], rating) & real[row]).nonzero().flatten())
        raters = [rating.to(states.device) for rating in raters]
        found = attention_paid(layer, states[::copies], options, real.to(states.device), raters)
        now.scores = found.to(self._mask.device)

    def _raters(self, now: _Pass, method: Inside, row: int, copies: int) -> Tensor:
        """Columns of the prompt."""
        last: Tensor = self._mask[row].nonzero()[-1]
        images = [image.columns for image in self._images if image.row == row]
        if not images:
            return last
        visual = torch.cat(images)
        behind = self._text[row].clone()
        behind[: int(visual.max())] = False
        text: Tensor = behind.nonzero().flatten()
        if not len(text):
            return last
        chosen = method.raters(now.entering[row * copies, visual], now.entering[row * copies, text])
        return last if chosen is None else text[chosen]

    def _shorter(self, now: _Pass, drop: Drop, states: Tensor) -> Tensor:
        """``[B, W, D]``: the states of what is left; decided in the first pass."""
        copies, width = len(states) // len(self._mask), states.shape[1]
        if drop.layer not in self._left:
            self._decide(now, drop, states)
        left = self._left[drop.layer]
        states = self._recycled(drop, states, copies)
        new = now.width - self._mask.shape[1]
        behind = torch.arange(width - new, width, device=states.device).expand(len(states), -1)
        within = left.within.to(states.device).repeat_interleave(copies, dim=0)
        index = torch.cat([within, behind], dim=1)
        return torch.take_along_dim(states, index[..., None], dim=1)

    def _decide(self, now: _Pass, drop: Drop, states: Tensor) -> None:
        """Which tokens of each image stay, and with them which columns."""
        assert now.scores is not None
        columns, real = self._columns(self._at(drop.layer - 1))
        stays, copies = real.clone(), len(states) // len(self._mask)
        earlier = self._kept[max(self._kept)] if self._kept else None
        kept, dropped = [], []
        for number, (image, count) in enumerate(zip(self._images, drop.counts, strict=True)):
            everything = torch.arange(len(image.columns), device=self._mask.device)
            tokens = everything if earlier is None else earlier[number]
            at = (torch.isin(columns[image.row], image.columns[tokens]) & real[image.row]).nonzero().flatten()
            scores, held = now.scores[image.row, at], image.held[tokens]
            chosen = held.clone()
            free = (~held).nonzero().flatten()
            chosen[free[top(scores[free], count - int(held.sum()))]] = True
            gone = Dropped(image.row, at[~chosen], scores[~chosen])
            recycled = self._recycle(drop, gone, states[image.row * copies])
            if recycled is not None:
                chosen[(~chosen).nonzero().flatten()[recycled.places]] = True
            stays[image.row, at] = chosen
            kept.append(tokens[chosen])
            dropped.append(gone)
        self._kept[drop.layer], self._dropped[drop.layer] = kept, dropped
        self._left[drop.layer] = _packed(columns, stays, self._on_left)

    def _recycled(self, drop: Drop, states: Tensor, copies: int) -> Tensor:
        """The states before a drop, with clusters in the places of their centres."""
        states = states.clone()
        for gone in self._dropped[drop.layer]:
            own = states[gone.row * copies : (gone.row + 1) * copies]
            recycled = self._recycle(drop, gone, own[0])
            if recycled is not None:
                own[:, gone.columns[recycled.places].to(states.device)] = recycled.states
        return states

    def _recycle(self, drop: Drop, gone: Dropped, states: Tensor) -> Recycled | None:
        """What comes back of the tokens dropped, from the states ``[W, D]`` of their row."""
        found = drop.method.recycle(states[gone.columns.to(states.device)], gone.scores.to(states.device))
        return None if found is None else Recycled(found.places.to(self._mask.device), found.states)


@contextmanager
def dropping(model: "PreTrainedModel", family: Family, pruned: Pruned, parts: Parts) -> Iterator[Dropping | None]:
    """Inside the block, this thread's passes drop what ``parts`` say of a prompt; None where there are none."""
    if not parts:
        yield None
        return
    drops = Dropping(model, family, pruned, parts)
    with drops.hooked():
        yield drops


def _packed(columns: Tensor, stays: Tensor, on_left: bool) -> Left:
    """The columns that stay, per row, padded to the longest row."""
    rows = [row.nonzero().flatten() for row in stays]
    width = max(map(len, rows))
    within, real = [], []
    for row in rows:
        pads = (width - len(row), 0) if on_left else (0, width - len(row))
        within.append(torch.nn.functional.pad(row, pads))
        real.append(torch.nn.functional.pad(torch.ones_like(row, dtype=torch.bool), pads))
    found = torch.stack(within)
    return Left(torch.take_along_dim(columns, found, dim=1), torch.stack(real), found)


def _rows(part: Tensor, copies: int) -> Tensor:
    """One of each row's copies, of position embeddings ``[..., B or 1, L, d]``."""
    return part if part.shape[-3] == 1 else part[..., ::copies, :, :]
