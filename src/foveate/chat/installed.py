"""What `attach` changes on one model while a block is open: its generate(), and two hooks of its forward."""

import inspect
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from foveate.chat.following import next_step
from foveate.chat.forwards import Attachment, Forward, calling
from foveate.chat.full_prompt import merging
from foveate.chat.lengths import check_options
from foveate.chat.memory import Live, Memory, forget, memory_of
from foveate.chat.request import Asked
from foveate.errors import InvalidInputs
from foveate.flow.prompt import has_pixels, placeholders
from foveate.hf import names
from foveate.hf.uncompiled import uncompiled

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ABSENT = object()


class Installed:
    """The changes on one model, and the blocks they serve, newest last."""

    def __init__(self, model: "PreTrainedModel", generate: Any) -> None:
        self.blocks: list[Attachment] = []
        self.generate_names = _parameters(type(model).generate)
        self.stock_generate = model.generate
        self.model = model
        self._forward_names = _parameters(type(model).forward)
        self._forwards: dict[int, Forward] = {}  # by the id of what they were given in place of pixels
        self._calls = threading.local()
        self._undone = False
        self._prune = uncompiled(self._prune_forward)
        self._step = uncompiled(self._follow)
        self._end = uncompiled(self._finish)
        self._close = uncompiled(self._close_left)
        instead = {"generate": _Generate(self, generate), names.MERGE: merging(names.at(model, names.MERGE))}
        self._own = {name: model.__dict__.get(name, _ABSENT) for name in instead}
        model.__dict__.update(instead)
        self._hook_before = model.register_forward_pre_hook(self._before, with_kwargs=True)
        self._hook_behind = model.register_forward_hook(self._behind, with_kwargs=True, always_call=True)

    def undo(self) -> None:
        """Leave the model as it was."""
        self._hook_before.remove()
        self._undone = True
        self._close_left()
        if not self._forwards:  # else another thread's forward is on its way, and takes it off
            self._hook_behind.remove()
        for name, value in self._own.items():
            if value is _ABSENT:
                self.model.__dict__.pop(name, None)
            else:
                self.model.__dict__[name] = value

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refused: a copy would go on calling the model itself."""
        raise InvalidInputs("a copy of a model inside its attach block: allowed is to copy it before or after")

    @property
    def generates(self) -> bool:
        """Whether this thread is inside this model's generate(), or one that drafts with it."""
        return bool(getattr(self._calls, "depth", 0))

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Until the end of the block, it is."""
        self._calls.depth = getattr(self._calls, "depth", 0) + 1
        try:
            yield
        finally:
            self._calls.depth -= 1

    def ask(
        self, attachment: Attachment, arguments: dict[str, Any], use_cache: bool | None
    ) -> tuple[Asked, Memory]:
        """Prune a prompt, and what its cache is to know of it; ``use_cache`` as `Request.ask`'s."""
        self._close_left()
        check_options(self.model, attachment.request, arguments)
        asked = attachment.request.ask(self.model, arguments, use_cache)
        with ExitStack() as undo:
            undo.callback(asked.close)
            attachment.last = asked.pruned.detached()
            live = None if asked.dropped is None else Live(asked.dropped, self.model)
            stands = placeholders(self.model, attachment.request.family, asked.pruned["input_ids"])
            memory = Memory.of(asked.pruned, stands, live)
            undo.pop_all()
        return asked, memory

    def _before(
        self, model: "PreTrainedModel", args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> Any:
        if kwargs is None:  # torch finds the hook half removed: another thread is leaving the last block
            return None
        arguments = {**dict(zip(self._forward_names, args, strict=False)), **kwargs}
        newest = self.blocks[-1:]
        if self._forwards:
            self._close()
        if newest and has_pixels(arguments):  # not a decoding step, nor what generate has pruned already
            # Gradients are left as they are: who trains through the forward reaches the vision tower.
            return (), self._prune(newest[0], arguments)
        if memory_of(names.given_cache(arguments)) is None:
            return None
        return self._step(arguments)

    def _behind(self, model: "PreTrainedModel", args: tuple[Any, ...], *rest: Any) -> None:
        if len(rest) < 2:  # half removed, as above
            return
        kwargs, output = rest
        if self._forwards or (output is not None and memory_of(names.given_cache(kwargs)) is not None):
            self._end(kwargs, output)

    def _prune_forward(self, attachment: Attachment, arguments: dict[str, Any]) -> dict[str, Any]:
        asked, memory = self.ask(attachment, arguments, None)
        given = dict(asked.pruned)
        encoded = given[names.ENCODED]
        forward = Forward(encoded, asked, attachment, memory, threading.get_ident(), calling())
        self._forwards[id(encoded)] = forward
        memory.begin(names.given_cache(arguments))
        return given

    def _follow(self, arguments: dict[str, Any]) -> Any:
        """A forward on a cache that a pruned prompt filled."""
        cache = names.given_cache(arguments)
        memory = memory_of(cache)
        if memory is None or int(cache.get_seq_length()) == 0:
            forget(cache)
            return None
        memory, step = next_step(self.model, memory, cache, arguments)
        memory.write(cache)
        known = arguments.get("position_ids") is not None  # the caller counts by hand
        return None if known else ((), {**arguments, **step})

    def _finish(self, kwargs: dict[str, Any], output: Any) -> None:
        cache = names.given_cache(kwargs)
        forward = self._forwards.pop(id(kwargs.get(names.ENCODED)), None)
        memory = memory_of(cache) if forward is None else forward.memory
        if forward is not None:
            forward.asked.close()
        if memory is not None and output is not None:  # it did not fail
            found = names.cache_in(output)
            memory.end(cache if found is None else found)
            if forward is not None:
                forward.attachment.record(forward.asked)
        if self._undone and not self._forwards:
            self._hook_behind.remove()

    def _close_left(self) -> None:
        """Close the forwards that were interrupted: torch calls no hook then."""
        for number, forward in list(self._forwards.items()):
            if not forward.runs():
                self._forwards.pop(number, None)
                forward.asked.close()


class _Generate:
    """A model's generate() inside a block."""

    def __init__(self, installed: Installed, generate: Any) -> None:
        self.installed = installed
        self._generate = generate

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._generate(self.installed, *args, **kwargs)


def _parameters(function: Any) -> list[str]:
    """The names of a method's parameters. The class's own: what wraps an instance's may take ``*args``."""
    return list(inspect.signature(function).parameters)[1:]
