"""Inside a block, decoder layers are given fewer visual tokens the deeper they are, and keep shorter caches.

Layers are given states, positions and masks; pre-hooks cut all three to the columns that are left. Nothing else
changes: a later layer stores fewer keys, and what is generated is masked by what its layer has stored. How many
tokens stay is known before (`plan`), which do is decided on the device: nothing waits for it. Hooks are taken off
as soon as stock itself would mask later passes like that.
"""

import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from foveate.families import Family
from foveate.hf import names
from foveate.hf.attention import Seen, uncompiled, watched
from foveate.inside.deciding import Left, decided, recycled_again
from foveate.inside.layout import Layout, layout_of
from foveate.inside.passing import Pass
from foveate.inside.plan import Drop, Parts, decoder_of, drops_of
from foveate.inside.scores import chooses_raters, heard, queries_and_keys, unseen
from foveate.inside.tables import Tables, tables_of
from foveate.pruned import Pruned

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
        self._entered = pruned.kept
        self._layout: Layout = layout_of(model, family, pruned)
        self._planned = drops_of(len(self._decoder.layers), self._layout, parts)
        self._drops = {drop.layer: drop for drop in self._planned if drop.left != drop.before}
        chooses = any(chooses_raters(drop.method) for drop in self._drops.values())
        device = pruned["attention_mask"].device
        self._tables: Tables = tables_of(self._layout, list(self._drops.values()), chooses, device)
        self._left: dict[int, Left] = {}
        self._decided = not self._drops  # by a pass that came to its end
        self._thread = threading.get_ident()
        self._pass: Pass | None = None
        self._cache: Any = None  # of the passes that are the prompt's: a weak reference, or None before the first
        self._entered_with: Tensor | None = None  # what entered the first layer then, where there is no cache
        self._handles: list[Any] = []
        self._watching = ExitStack()

    @property
    def kept(self) -> dict[int, list[Tensor]]:
        """By layer that tokens were dropped before, per image: ascending indices left of those that entered."""
        if not self._decided:
            return {}
        return {drop.layer: self._kept_at(self._at(drop.layer)) for drop in self._planned}

    @property
    def kept_at_last(self) -> list[Tensor]:
        """Per image, what `kept` says of the last drop, as indices among the image's own tokens."""
        kept = self.kept
        if not kept:
            return self._entered
        last = kept[max(kept)]
        return [entered[left.to(entered.device)] for entered, left in zip(self._entered, last, strict=True)]

    @property
    def tokens_per_layer(self) -> list[list[int]]:
        """Per image, the tokens each layer is given, with what stands for dropped ones."""
        counts = [[len(image.columns)] * len(self._decoder.layers) for image in self._layout.images]
        for drop in self._planned:
            for image, count in zip(counts, drop.left, strict=True):
                image[drop.layer :] = [count] * (len(image) - drop.layer)
        return counts

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Drop in this thread's passes through the language model."""
        try:
            self._open()
            yield
        finally:
            self.close()

    def close(self) -> None:
        """Take off what is on the model: at any time, in any state, and once more.

        Whoever hooks a forward calls it when leaving their block: torch runs no hook after a KeyboardInterrupt.
        """
        handles, self._handles = self._handles, []
        for handle in handles:
            handle.remove()
        self._watching.close()
        self._pass = None

    def _open(self) -> None:
        self.close()
        self._thread = threading.get_ident()
        if not self._drops:
            return
        begin, end = uncompiled(self._begin), uncompiled(self._end)
        self._handles.append(self._decoder.register_forward_pre_hook(begin, with_kwargs=True))
        self._handles.append(self._decoder.register_forward_hook(end))
        first = min(self._drops)
        for index, layer in enumerate(self._decoder.layers[first:], start=first):
            before = uncompiled(partial(self._before, index))
            self._handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))

    def _begin(self, module: Any, arguments: tuple[Any, ...], options: dict[str, Any] | None = None) -> Any:
        """Before the decoder. Without options it is called in another thread, which finds it half removed."""
        if options is None or threading.get_ident() != self._thread:
            return None
        self._watching.close()
        entering, cache = options["inputs_embeds"], options.get(names.cache_argument(self._decoder))
        self._pass = None
        if entering is None or not self._is_own(entering, cache):
            return None
        cached = int(cache.get_seq_length()) if self._decided and cache is not None else 0
        deepstack, first = list(options.get(names.DEEPSTACK) or ()), min(self._drops)
        visual = options.get(names.VISUAL)
        width = self._layout.mask.shape[1]
        self._pass = Pass(cache, width, cached, entering, deepstack, visual)
        if not self._decided:
            self._left = {}
            self._watch()
        if len(deepstack) <= first:
            return None
        for index in range(first, len(deepstack)):  # stock would add to columns that are gone
            layer, behind = self._decoder.layers[index], uncompiled(partial(self._behind, index))
            self._watching.callback(layer.register_forward_hook(behind).remove)
        return arguments, {**options, names.DEEPSTACK: deepstack[:first]}

    def _end(self, module: Any, arguments: tuple[Any, ...], output: Any) -> None:
        """Behind the decoder."""
        now = self._pass
        if now is None or threading.get_ident() != self._thread:
            return
        self._watching.close()
        cache = now.cache
        if cache is None:
            cache = names.returned_cache(output)[1]  # the decoder made it itself
            self._cache = None if cache is None else weakref.ref(cache)
            self._entered_with = self._entered_with if cache is None else None
        self._pass, self._decided = None, True
        if cache is not None and self._is_stock_from_now_on(now.entering, cache):
            self.close()

    def _is_own(self, entering: Tensor, cache: Any) -> bool:
        """Whether a pass is one of the prompt's: callers' functions may run the model on something else."""
        rows, width = self._layout.mask.shape
        if not self._decided:  # the first
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

    def _is_stock_from_now_on(self, entering: Tensor, cache: Any) -> bool:
        """Whether a step on the cache is masked by stock as it is by us: not at all, whatever its layers hold."""
        if not self._layout.mask.all() or not all(drop.full for drop in self._drops.values()):
            return False
        config, one = self._decoder.config, entering[:, :1]
        return all(names.causal_mask(config, one, None, cache, layer) is None for layer in (0, *self._drops))

    def _watch(self) -> None:
        """See the attention of layers that rank tokens for the next one."""
        heard = {drop.hears: drop for drop in self._drops.values() if drop.hears != drop.layer}
        for index, drop in heard.items():
            see = partial(self._see, drop)
            self._watching.enter_context(watched([self._decoder.layers[index].self_attn], see))

    def _see(self, drop: Drop, module: Any, seen: Seen) -> None:
        if self._pass is not None:
            entering, before = self._pass.entering, self._at(drop.layer - 1)
            self._pass.scores = heard(self._tables, drop, before, seen, entering, self._pass.raters)

    def _before(
        self, index: int, layer: Any, arguments: tuple[Any, ...], options: dict[str, Any] | None = None
    ) -> Any:
        """The pre-hook of a layer."""
        now = self._pass
        if options is None or now is None or threading.get_ident() != self._thread:
            return None
        states = arguments[0] if arguments else options["hidden_states"]
        options = {name: value for name, value in options.items() if name != "hidden_states"}
        drop = self._drops.get(index)
        if drop is not None:
            if now.cached == 0:
                states = self._shorter(now, drop, layer, states, {**options, **now.given})
            now.go_on(self._decoder.config, index, self._left[index], states, options)
        return (states, *arguments[1:]), {**options, **now.given}

    def _behind(self, index: int, layer: Any, arguments: tuple[Any, ...], output: Tensor) -> Any:
        """The hook that adds to visual states what deepstack adds behind a layer."""
        now = self._pass
        if now is None or threading.get_ident() != self._thread:
            return None
        return now.with_deepstack(index, output)

    def _at(self, index: int) -> Left | None:
        """What is left at a layer; None for the whole prompt."""
        found = [self._left[layer] for layer in sorted(self._left) if layer <= index]
        return found[-1] if found else None

    def _kept_at(self, left: Left | None) -> list[Tensor]:
        device = self._tables.mask.device
        if left is None:
            return [torch.arange(len(image.columns), device=device) for image in self._layout.images]
        columns, owners = left.columns.cpu().numpy(), left.owners.cpu().numpy()
        return [
            torch.from_numpy(np.searchsorted(image.columns, columns[image.row][owners[image.row] == number])).to(
                device
            )
            for number, image in enumerate(self._layout.images)
        ]

    def _shorter(self, now: Pass, drop: Drop, layer: Any, states: Tensor, options: dict[str, Any]) -> Tensor:
        """``[B, W, D]``: the states of what is left; decided in the first pass."""
        left = self._left.get(drop.layer)
        if left is None:
            if drop.hears == drop.layer:
                self._see(drop, layer, self._heard_again(layer, states, options))
            if now.scores is None:
                raise unseen(layer)
            before, scores = self._at(drop.layer - 1), now.scores.to(self._tables.mask.device)
            states, left = decided(self._layout, self._tables, drop, before, scores, states)
            self._left[drop.layer], now.scores = left, None
        else:
            states = recycled_again(drop, left, states)
        index, new = left.within.to(states.device), now.new
        if len(states) > len(index):
            index = index.repeat_interleave(len(states) // len(index), dim=0)
        if new:
            behind = torch.arange(states.shape[1] - new, states.shape[1], device=states.device)
            index = torch.cat([index, behind.expand(len(index), -1)], dim=1)
        return torch.take_along_dim(states, index[..., None], dim=1)

    def _heard_again(self, layer: Any, states: Tensor, options: dict[str, Any]) -> Seen:
        """What a layer would attend with, had it been given all; one of each row's copies."""
        copies = len(states) // len(self._layout.mask)
        embeddings = tuple(
            part if part.shape[-3] == 1 else part[..., ::copies, :, :] for part in options["position_embeddings"]
        )
        return queries_and_keys(layer, states[::copies], {**options, "position_embeddings": embeddings})


@contextmanager
def dropping(model: "PreTrainedModel", family: Family, pruned: Pruned, parts: Parts) -> Iterator[Dropping | None]:
    """Inside the block, this thread's passes drop what ``parts`` say of a prompt; None where there are none."""
    if not parts:
        yield None
        return
    drops = Dropping(model, family, pruned, parts)
    with drops.hooked():
        yield drops
