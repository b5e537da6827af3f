"""attach(): prune every image a model is given, inside a with block."""

import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from foveate.budget import Budget
from foveate.errors import InvalidInputs, InvalidOption
from foveate.families import family_of
from foveate.flow.check import check_method
from foveate.flow.prompt import has_pixels
from foveate.full_prompt import FullPrompt
from foveate.hf import names
from foveate.hf.unwrap import unwrap
from foveate.inside.dropping import Dropping, dropping
from foveate.inside.plan import check_drops
from foveate.methods import Compose, Inside, Method
from foveate.parts import Parts
from foveate.prune import prune_with_grad
from foveate.pruned import Pruned
from foveate.settings import Settings
from foveate.turns import PER_TOKEN, Turn, went_on

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedModel


@dataclass(eq=False)
class Attached:
    """One `attach` in force.

    Attributes:
        last: the newest `Pruned`, from whichever thread; None before the first prompt with images.
        dropped: what its language model drops, where the method acts there.
    """

    method: "Method | Inside | Compose"
    settings: Settings
    sources: dict[str, Any]
    last: Pruned | None = field(default=None, repr=False)
    dropped: Dropping | None = field(default=None, repr=False)
    _parts: Parts = field(kw_only=True, repr=False)

    @property
    def acts_inside(self) -> bool:
        """Whether the method drops inside the language model."""
        return bool(self._parts.inside)

    def prune(self, model: "PreTrainedModel", inputs: dict[str, Any], use_cache: bool | None = None) -> Pruned:
        """Prune one prompt, and remember it (without its gradients)."""
        pruned = prune_with_grad(model, inputs, self._parts.prompt, self.settings, use_cache, **self.sources)
        self.last = pruned.detached()
        return pruned

    @contextmanager
    def dropping(self, model: "PreTrainedModel", pruned: Pruned) -> Iterator[Dropping | None]:
        """Drop inside the language model what the method does, in this thread's passes inside the block."""
        own = family_of(model, self.sources["family"])
        with dropping(model, own, pruned, self._parts.inside) as dropped:
            yield dropped

    def record(self, pruned: Pruned, dropped: Dropping | None) -> None:
        """Remember what a language model dropped."""
        if dropped is not None:
            counts = dropped.tokens_per_layer
            told = replace(pruned.report, method=self.method, tokens_per_layer=counts)
            self.last, self.dropped = replace(pruned.detached(), report=told), dropped


@contextmanager
def attach(
    model: "PreTrainedModel",
    method: "Method | Inside | Compose",
    *,
    keep: int | float | Budget | Sequence[int | float | Budget | None] | None = None,
    keep_total: int | float | Sequence[int | float | None] | None = None,
    positions: str = "original",
    per_frame: bool = False,
    question: str | Sequence[str] | None = None,
    processor: Any = None,
    clip: "CLIPModel | str | Path | None" = None,
    family: str | None = None,
) -> Iterator[Attached]:
    """Prune whatever images reach ``model.generate`` or ``model(...)`` inside the block.

    ``generate`` returns the full prompt followed by the new tokens, so ``output[:, prompt_length:]``
    stays right, and ``max_length`` and ``min_length`` count as if nothing had been pruned. A plain
    forward returns logits of the pruned prompt; ``Attached.last.kept`` tells which tokens are left.
    Attentions, hidden states and caches are in pruned coordinates as well. Streamers, stopping criteria and
    processors of logits that are passed see the full prompt. A returned cache can be passed on inside the block
    for the next turn, a text, with the whole conversation's ids as of stock; outside it, or for a turn with new
    images, see `continued` (not after methods inside the language model).

    Blocks nest: the newest one rules, for all threads. The last one to close restores the model exactly.

    Args:
        model: the model instance to attach to; its class and other instances are untouched.
        method: as `prune`'s, like all that follow; or one that acts inside the language model, such as
            `foveate.FastV()`; or a `foveate.Compose` of both kinds.
        keep: per image or video, a count or a fraction; of a Compose, one for each of its parts.
        keep_total: instead, for all of a row together.
        positions: ``original`` or ``compact``.
        per_frame: whether each frame of a video is ranked by itself.
        question: the question, or one per row.
        processor: the processor or tokenizer.
        clip: CLIP pair of the vision tower.
        family: None or ``generic``.

    Yields:
        An `Attached`, whose ``last`` is the newest `Pruned`.

    Raises:
        UnsupportedModel, InvalidBudget, InvalidOption: at once. The errors of `prune`: when called.
    """
    model = unwrap(model)
    parts, own = Parts.of(method, keep, keep_total), family_of(model, family)
    check_method(model, own, parts.prompt)
    check_drops(model, own, parts.inside)
    if per_frame and parts.keeps_all:
        raise InvalidOption(f"per_frame=True with {method!r}: allowed with a method that prunes the prompt")
    settings = Settings(parts.budget, positions, per_frame)
    sources = {"question": question, "processor": processor, "clip": clip, "family": family}
    attached = Attached(method, settings, sources, _parts=parts)
    _enter(model, attached)
    try:
        yield attached
    finally:
        _leave(model, attached)


@dataclass
class _Installation:
    """What is changed on one model, and the attachments it serves, newest last."""

    stack: list[Attached]
    own_generate: Any  # the instance's own attribute before, or _ABSENT
    hooks: list[Any]


# What generate() is given for the text of a prompt; pruned ones bring their own.
TEXT = ("input_ids", "attention_mask", "position_ids", "cache_position", *PER_TOKEN)

# Options of generate() that take tokens back, or read the prompt in parts.
PARTLY = ("prompt_lookup_num_tokens", "prefill_chunk_size")

_ABSENT = object()
_LOCK = threading.Lock()
# .generate: whether this thread is in a pruned generate already; .forward: what ends with its forward
_INSIDE = threading.local()
# By cache: the pruned prompt that filled it, and what the language model dropped of it.
_ASKED: "WeakKeyDictionary[Any, tuple[Turn, Dropping | None]]" = WeakKeyDictionary()
_INSTALLED: "WeakKeyDictionary[PreTrainedModel, _Installation]" = WeakKeyDictionary()


def _enter(model: "PreTrainedModel", attached: Attached) -> None:
    with _LOCK:
        if model not in _INSTALLED:
            stack: list[Attached] = []
            own = model.__dict__.get("generate", _ABSENT)
            hooks = [
                model.register_forward_pre_hook(_pruning_hook(model, stack), with_kwargs=True),
                model.register_forward_hook(_closing_hook, always_call=True),
            ]
            _INSTALLED[model] = _Installation(stack, own, hooks)
            model.__dict__["generate"] = _Generate(_pruning_generate(model, model.generate, stack))
        _INSTALLED[model].stack.append(attached)


def _leave(model: "PreTrainedModel", attached: Attached) -> None:
    with _LOCK:
        installation = _INSTALLED[model]
        installation.stack.remove(attached)
        if installation.stack:
            return
        for hook in installation.hooks:
            hook.remove()
        if installation.own_generate is _ABSENT:
            del model.__dict__["generate"]
        else:
            model.__dict__["generate"] = installation.own_generate
        del _INSTALLED[model]


def _parameters(function: Any) -> list[str]:
    """The names of a method's parameters. The class's own: what wraps an instance's may take ``*args``."""
    return list(inspect.signature(function).parameters)[1:]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _prune_uncompiled(attached: Attached, model: "PreTrainedModel", arguments: dict[str, Any]) -> dict[str, Any]:
    """Tracing what depends on the values of tensors would cost far more than it could save."""
    _check_inside(model, attached, arguments)
    pruned = attached.prune(model, arguments)
    block = ExitStack()
    dropped = block.enter_context(attached.dropping(model, pruned))
    _INSIDE.forward = block, partial(attached.record, pruned, dropped)
    return dict(pruned)


def _pruning_hook(model: "PreTrainedModel", stack: list[Attached]) -> Any:
    parameters = _parameters(type(model).forward)

    def hook(model: "PreTrainedModel", args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        if kwargs is None:  # torch finds the hook half removed: another thread is leaving the last block
            return None
        newest = stack[-1:]
        arguments = {**dict(zip(parameters, args, strict=False)), **kwargs}
        if not getattr(_INSIDE, "generate", False):
            _check_cache(names.given_cache(arguments))
        if not newest or not has_pixels(arguments):
            return None  # text alone, a decoding step, or a prompt that generate has pruned already
        # Gradients are left as they are: who trains through the forward reaches the vision tower.
        return (), _prune_uncompiled(newest[0], model, arguments)

    return hook


def _closing_hook(model: "PreTrainedModel", args: tuple[Any, ...], output: Any) -> None:
    block, record = _INSIDE.__dict__.pop("forward", (None, None))
    if block is not None and record is not None:
        block.close()
        if output is not None:  # it did not fail
            record()


class _Generate:
    """A model's generate() inside a block. A copy of the model would go on calling the model itself."""

    def __init__(self, generate: Any) -> None:
        self._generate = generate

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._generate(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise InvalidInputs("a copy of a model inside its attach block: allowed is to copy it before or after")


def _pruning_generate(model: "PreTrainedModel", generate: Any, stack: list[Attached]) -> Any:
    parameters = _parameters(type(model).generate)

    def pruned_generate(*args: Any, **kwargs: Any) -> Any:
        arguments = {**dict(zip(parameters, args, strict=False)), **kwargs}
        if arguments.get("inputs") is not None:  # generate's own name for the first argument
            arguments["input_ids"] = arguments.pop("inputs")
        newest = stack[-1:]
        inside = getattr(_INSIDE, "generate", False)
        if inside and not has_pixels(arguments):  # assisted decoding: drafts of a prompt that is pruned already
            return generate(**arguments)
        if newest and arguments.get(names.ENCODED) is not None:
            raise InvalidInputs(f"{names.ENCODED} while pruning is attached: pass the pixels, or leave the block")
        if newest and has_pixels(arguments):
            _check_inside(model, newest[0], arguments)
            unwrap(getattr(model.prepare_inputs_for_generation, "__self__", model))  # PEFT's, of a learned prompt
            with torch.no_grad():  # generate's own no_grad begins later
                pruned = newest[0].prune(model, arguments, _caches(model, arguments))
            asked: Pruned | Turn = pruned
            block = newest[0].dropping(model, pruned)
        elif newest and names.given_cache(arguments) in _ASKED:
            asked, earlier = _next_turn(model, arguments)
            if earlier is not None:
                _check_inside(model, newest[0], arguments)
            block = _again(earlier)
        else:
            return generate(**arguments)
        prompt: Tensor = arguments["input_ids"]
        width = asked["input_ids"].shape[1]
        full = FullPrompt(prompt, width)
        kept = isinstance(asked, Pruned)  # it carries all other arguments itself
        options = (
            {}
            if kept
            else {name: value for name, value in names.without_cache(arguments).items() if name not in TEXT}
        )
        limits = _rebased(model, arguments, prompt.shape[1] - width)
        _INSIDE.generate = True
        try:
            with block as dropped:
                steps = {} if dropped is None else {"disable_compile": True}  # hooks keep account of what is left
                output = generate(**{**options, **asked, **limits, **steps, **full.shown(arguments)})
        finally:
            _INSIDE.generate = inside
        if isinstance(asked, Pruned):
            newest[0].record(asked, dropped)
        cache = names.returned_cache(output)[1] or names.given_cache(arguments)
        if cache is not None:
            _ASKED[cache] = (asked.without_cache() if isinstance(asked, Turn) else Turn.first(asked)), dropped
        return full.output(output)

    return pruned_generate


@contextmanager
def _again(dropped: Dropping | None) -> Iterator[Dropping | None]:
    """What the language model dropped of a conversation's first turn stays dropped."""
    with nullcontext() if dropped is None else dropped.hooked():
        yield dropped


def _next_turn(model: "PreTrainedModel", arguments: dict[str, Any]) -> "tuple[Turn, Dropping | None]":
    """A text turn on the cache of a pruned prompt, asked as of stock: with the whole conversation's ids."""
    cache, ids = names.given_cache(arguments), arguments["input_ids"]
    asked, dropped = _ASKED[cache]
    said = asked.columns + int(cache.get_seq_length()) + 1 - asked["input_ids"].shape[1]
    if ids.shape[1] <= said:
        raise InvalidInputs(
            f"input_ids of {ids.shape[1]} columns with a cache of {said}: allowed is the whole conversation, as "
            "generate() returned it, and the new turn"
        )
    answered: Any = SimpleNamespace(sequences=ids[:, :said], **{names.cache_argument(model): cache})
    return went_on(asked, answered, ids[:, said:]), dropped


def _check_cache(cache: Any) -> None:
    """Refuse a step by hand on a cache whose later layers hold fewer tokens.

    Raises:
        InvalidInputs: it is one.
    """
    if cache in _ASKED and _ASKED[cache][1] is not None:
        raise InvalidInputs(
            "the KV cache of a prompt that lost tokens inside the language model: allowed is to "
            "go on with generate()"
        )


def _check_inside(model: "PreTrainedModel", attached: Attached, arguments: dict[str, Any]) -> None:
    """Refuse what does not go with dropping inside the language model.

    Raises:
        InvalidOption: an option of generate() that takes tokens back, or reads the prompt in parts; labels.
    """
    config = arguments.get("generation_config") or model.generation_config
    for name in ("assistant_model", "assistant_early_exit", *PARTLY, "labels"):
        given = arguments.get(name, getattr(config, name, None))
        if attached.acts_inside and given is not None:
            raise InvalidOption(
                f"{name} with {attached.method!r}: allowed with methods that prune the prompt alone"
            )


def _caches(model: "PreTrainedModel", arguments: dict[str, Any]) -> bool:
    """Whether generate() will use a KV cache."""
    config = arguments.get("generation_config") or model.generation_config
    given = arguments.get("use_cache", config.use_cache)
    return given is None or bool(given)


def _rebased(model: "PreTrainedModel", arguments: dict[str, Any], removed: int) -> dict[str, int]:
    """Length limits that count the prompt, less the columns removed. max_new_tokens needs nothing."""
    configs = [config for config in (arguments.get("generation_config"), model.generation_config) if config]

    own = arguments.get("max_length")
    columns = arguments["input_ids"].shape[1]
    if own is not None and own <= columns and arguments.get("max_new_tokens") is None:
        raise InvalidInputs(
            f"max_length={own}: the prompt has {columns} tokens; allowed is more, or max_new_tokens"
        )

    def given(name: str) -> Any:
        values = [arguments.get(name), *(getattr(config, name, None) for config in configs)]
        return next((value for value in values if value is not None), None)

    limits = {"max_length": "max_new_tokens", "min_length": "min_new_tokens"}
    return {
        name: max(0, given(name) - removed)
        for name, newer in limits.items()
        if given(name) and given(newer) is None
    }
