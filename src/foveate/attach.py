"""attach(): prune every image a model is given, inside a with block."""

import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from foveate.budget import Budget
from foveate.check import check_method, has_pixels
from foveate.errors import InvalidInputs
from foveate.families import family_of
from foveate.methods.base import Method
from foveate.prune import prune_with_grad
from foveate.pruned import Pruned
from foveate.settings import Settings
from foveate.unwrap import unwrap

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedModel


@dataclass(eq=False)
class Attached:
    """One `attach` in force.

    Attributes:
        last: the newest `Pruned`, from whichever thread; None before the first prompt with images.
    """

    method: Method
    settings: Settings
    sources: dict[str, Any]
    last: Pruned | None = field(default=None, repr=False)

    def prune(self, model: "PreTrainedModel", inputs: dict[str, Any]) -> Pruned:
        """Prune one prompt, and remember it (without its gradients)."""
        pruned = prune_with_grad(model, inputs, self.method, self.settings, **self.sources)
        self.last = pruned.detached()
        return pruned


@contextmanager
def attach(
    model: "PreTrainedModel",
    method: Method,
    *,
    keep: int | float | Budget | None = None,
    keep_total: int | float | None = None,
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
    Attentions, hidden states and caches are in pruned coordinates as well.

    Blocks nest: the newest one rules, for all threads. The last one to close restores the model exactly.

    Args:
        model: the model instance to attach to; its class and other instances are untouched.
        method: as `prune`'s, like all that follow.
        keep: per image or video, a count or a fraction.
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
    check_method(model, family_of(model, family), method)
    settings = Settings(Budget.of_one(keep, keep_total), positions, per_frame)
    sources = {"question": question, "processor": processor, "clip": clip, "family": family}
    attached = Attached(method, settings, sources)
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
    hook: Any


_ABSENT = object()
_LOCK = threading.Lock()
_INSIDE = threading.local()  # .generate: whether this thread is in a pruned generate already
_INSTALLED: "WeakKeyDictionary[PreTrainedModel, _Installation]" = WeakKeyDictionary()


def _enter(model: "PreTrainedModel", attached: Attached) -> None:
    with _LOCK:
        if model not in _INSTALLED:
            stack: list[Attached] = []
            own = model.__dict__.get("generate", _ABSENT)
            hook = model.register_forward_pre_hook(_pruning_hook(model, stack), with_kwargs=True)
            _INSTALLED[model] = _Installation(stack, own, hook)
            model.__dict__["generate"] = _pruning_generate(model, model.generate, stack)
        _INSTALLED[model].stack.append(attached)


def _leave(model: "PreTrainedModel", attached: Attached) -> None:
    with _LOCK:
        installation = _INSTALLED[model]
        installation.stack.remove(attached)
        if installation.stack:
            return
        installation.hook.remove()
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
    return dict(attached.prune(model, arguments))


def _pruning_hook(model: "PreTrainedModel", stack: list[Attached]) -> Any:
    names = _parameters(type(model).forward)

    def hook(model: "PreTrainedModel", args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        if kwargs is None:  # torch finds the hook half removed: another thread is leaving the last block
            return None
        newest = stack[-1:]
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        if not newest or not has_pixels(arguments):
            return None  # text alone, a decoding step, or a prompt that generate has pruned already
        # Gradients are left as they are: who trains through the forward reaches the vision tower.
        return (), _prune_uncompiled(newest[0], model, arguments)

    return hook


def _pruning_generate(model: "PreTrainedModel", generate: Any, stack: list[Attached]) -> Any:
    names = _parameters(type(model).generate)

    def pruned_generate(*args: Any, **kwargs: Any) -> Any:
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        if arguments.get("inputs") is not None:  # generate's own name for the first argument
            arguments["input_ids"] = arguments.pop("inputs")
        newest = stack[-1:]
        inside = getattr(_INSIDE, "generate", False)
        if inside and not has_pixels(arguments):  # assisted decoding: drafts of a prompt that is pruned already
            return generate(**arguments)
        if newest and arguments.get("mm_encoder_outputs") is not None:
            raise InvalidInputs(
                "mm_encoder_outputs while pruning is attached: pass the pixels, or leave the block"
            )
        if not newest or not has_pixels(arguments):
            return generate(**arguments)
        unwrap(getattr(model.prepare_inputs_for_generation, "__self__", model))  # PEFT's, of a learned prompt
        with torch.no_grad():  # generate's own no_grad begins later
            pruned = newest[0].prune(model, arguments)
        prompt: Tensor = arguments["input_ids"]
        removed = prompt.shape[1] - pruned["input_ids"].shape[1]
        _INSIDE.generate = True
        try:
            output = generate(**{**pruned, **_rebased(model, arguments, removed)})
        finally:
            _INSIDE.generate = inside
        return _with_prompt(output, prompt, removed)

    return pruned_generate


def _rebased(model: "PreTrainedModel", arguments: dict[str, Any], removed: int) -> dict[str, int]:
    """Length limits that count the prompt, less the columns removed. max_new_tokens needs nothing."""
    configs = [config for config in (arguments.get("generation_config"), model.generation_config) if config]

    def given(name: str) -> Any:
        values = [arguments.get(name), *(getattr(config, name, None) for config in configs)]
        return next((value for value in values if value is not None), None)

    limits = {"max_length": "max_new_tokens", "min_length": "min_new_tokens"}
    return {
        name: max(0, given(name) - removed)
        for name, newer in limits.items()
        if given(name) and given(newer) is None
    }


def _with_prompt(output: Any, prompt: Tensor, removed: int) -> Any:
    """``output`` with the full prompt in front of the new tokens."""
    sequences: Tensor = output if isinstance(output, Tensor) else output.sequences
    full = prompt.repeat_interleave(len(sequences) // len(prompt), dim=0)
    restored = torch.cat([full, sequences[:, prompt.shape[1] - removed :]], dim=1)
    if isinstance(output, Tensor):
        return restored
    output.sequences = restored
    return output
