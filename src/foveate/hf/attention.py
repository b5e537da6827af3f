"""See the queries and keys of attention layers while they run, under every attention backend.

Attention layers of transformers look up their function in a table, by the name in their configuration. While they
are watched, their configuration is a copy that names our function: it shows what it was given to whoever asked in
this thread, and calls the function that the layer would have called.
"""

import copy
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import UnsupportedModel
from foveate.hf import names

PREFIX = "foveate_"  # before the name of the backend, so that "flash" is still found in it


@dataclass(frozen=True, eq=False)
class Seen:
    """What a layer handed to its attention function.

    Attributes:
        query: ``[B, heads, n, d]``, norms and rotations included.
        key: ``[B, heads of keys, m, d]``, likewise.
        mask: as the backend has it, or None.
        scaling: what the products of queries and keys are multiplied by.
        lengths: ``[S + 1]``, where each sequence begins in a batch of one that packs several; else None.
    """

    query: Tensor
    key: Tensor
    mask: Any
    scaling: float
    lengths: Tensor | None


See = Callable[[nn.Module, Seen], None]


@dataclass(eq=False)
class _Watch:
    """A module that is watched: its own configuration, and who asked, by thread."""

    module: Any
    config: Any
    asking: list[tuple[int, See]] = field(default_factory=list)


_LOCK = threading.RLock()  # reentrant: a signal's handler may leave a block that it interrupts
_WATCHED: dict[int, _Watch] = {}  # by the id of the module


@contextmanager
def watched(modules: Sequence[Any], see: See) -> Iterator[None]:
    """Inside the block, ``see(module, seen)`` is called at each call that these modules make in this thread.

    What the modules return does not change. Blocks nest and overlap; the last to close restores the modules.

    Raises:
        UnsupportedModel: a module that does not choose its attention function by its configuration.
    """
    asked = threading.get_ident(), see
    for module in modules:
        _check(module)
    try:
        for module in modules:
            _enter(module, asked)
        yield
    finally:
        for module in modules:
            _leave(module, asked)


def _check(module: Any) -> None:
    """Refuse what would compute something else while its configuration names our function.

    Raises:
        UnsupportedModel: it does.
    """
    backend = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if backend is None or _stock(module, backend.removeprefix(PREFIX)) is None:
        raise UnsupportedModel(f"{type(module).__name__} does not use transformers' attention functions")
    constants = inspect.unwrap(type(module).forward).__code__.co_consts
    compared = [part for value in constants for part in (value if isinstance(value, tuple) else (value,))]
    if backend.removeprefix(PREFIX) in compared:  # DeepSeek's sparse attention makes its masks by that name
        raise UnsupportedModel(f"{type(module).__name__} computes something else for each name of a backend")


def _stock(module: nn.Module, backend: str) -> Any:
    """The function that a module's own forward finds by the name of a backend; None where it finds none."""
    known = inspect.unwrap(type(module).forward).__globals__
    table = known.get(names.ATTENTION_TABLE)
    if table is None:
        table = names.attention_functions()()
    return known.get(names.EAGER_ATTENTION) if backend == "eager" else table.get(backend)


def _enter(module: Any, asked: tuple[int, See]) -> None:
    with _LOCK:
        watch = _WATCHED.setdefault(id(module), _Watch(module, module.config))
        watch.asking.append(asked)
        if module.config is watch.config:
            backend = watch.config._attn_implementation
            function = _function(backend, _compilers())
            names.attention_functions().register(PREFIX + backend, function)
            module.config = _named(watch.config, PREFIX + backend)


def _leave(module: Any, asked: tuple[int, See]) -> None:
    """Forget who asked; also of a module that was not entered, and once more."""
    with _LOCK:
        watch = _WATCHED.get(id(module))
        if watch is None:
            return
        watch.asking = [other for other in watch.asking if other is not asked]
        if not watch.asking:
            module.config = watch.config
            del _WATCHED[id(module)]


def _named(config: Any, backend: str) -> Any:
    """A copy of a configuration with another backend; configurations in it are shared, and keep theirs."""
    named = copy.copy(config)
    named._attn_implementation = {"": backend}
    return named


@cache
def _function(backend: str, compilers: bool) -> Any:
    """What stands in the table for a backend; ``compilers`` that are there leave it out of their graphs."""

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **options: Any
    ) -> Any:
        watch = _WATCHED.get(id(module))  # None where another thread has just left the last block
        for thread, see in watch.asking if watch else ():
            if thread == threading.get_ident():
                see(module, _seen(query, key, attention_mask, options))
        unwatched = _unwatched(module, backend)
        return _stock(module, backend)(unwatched, query, key, value, attention_mask, **options)

    return uncompiled(attend) if compilers else attend


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which compilers leave out of their graphs; they are not imported for it."""
    disable: Any = torch.compiler.disable
    uncompiled: Callable[..., Any] = disable(function) if _compilers() else function
    return uncompiled


def _compilers() -> bool:
    return "torch._dynamo" in sys.modules


def _seen(query: Tensor, key: Tensor, mask: Any, options: dict[str, Any]) -> Seen:
    scaling = options.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return Seen(query.detach(), key.detach(), mask, scaling, options.get("cu_seq_lens_q"))


def _unwatched(module: Any, backend: str) -> Any:
    """The module with its own configuration: flash attention reads the name of its kernel there."""
    if module.config._attn_implementation == backend:
        return module
    twin = copy.copy(module)  # shares all weights
    twin.config = _named(module.config, backend)
    return twin
