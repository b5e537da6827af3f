"""Run the vision encoders once, and collect only the signals asked for."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveate.errors import InvalidFeatures, InvalidInputs, UnsupportedModel
from foveate.families import PIXELS, Family
from foveate.flow.prompt import Prompt
from foveate.hf import names, tower
from foveate.hf.attention import Seen
from foveate.select.checks import refuse_if
from foveate.tokens import Signal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What is made of the queries and keys of the tower's attention layer.
READ: dict[Signal, Callable[[Sequence[Seen]], tuple[Tensor, list[int]]]] = {
    Signal.CLS_ATTENTION: partial(tower.attention, first=True),
    Signal.RECEIVED_ATTENTION: partial(tower.attention, first=False),
    Signal.JOINT_ATTENTION: partial(tower.attention, first=True, joint=True),
    Signal.KEYS: tower.keys,
}
PROJECTED = {Signal.CLIP_RELEVANCE, Signal.PATCHES}  # what is made of the projector's input


@dataclass(frozen=True, eq=False)
class Encoded:
    """What the vision encoders gave: the tokens of all images in prompt order, then those of all videos.

    Attributes:
        features: ``[T, D]``.
        counts: tokens of each image.
        kinds: ``image`` or ``video``, of each.
        signals: by signal, ``[F, ...]``: scores of the F tokens that are not locked.
        patches: ``[T, Dv]``, the states the projector read; None unless asked for.
        deepstack: per layer ``[T, D]``, what the language model adds to the tokens' states in its first layers.
    """

    features: Tensor
    counts: list[int]
    kinds: list[str]
    signals: dict[Signal, Tensor]
    patches: Tensor | None
    deepstack: list[Tensor]


def encode(model: "PreTrainedModel", family: Family, prompt: Prompt, signals: frozenset[Signal]) -> Encoded:
    """Encode the pixels of a prompt, tapping the tower for the signals that arise in it.

    The stock ``get_image_features`` and ``get_video_features`` run, with any attention backend; nothing is
    patched. Gradients flow where the caller has them on.

    Raises:
        InvalidInputs: the encoder does not take the inputs.
        UnsupportedModel: its weights are not there.
    """
    parts = [
        _encode_kind(model, family, prompt, kind, signals)
        for kind in family.kinds
        if prompt.inputs.get(PIXELS[kind]) is not None
    ]
    if len(parts) == 1:
        return parts[0]
    layers = zip(*(part.deepstack for part in parts), strict=True)
    patches = [part.patches for part in parts if part.patches is not None]
    return Encoded(
        features=torch.cat([part.features for part in parts]),
        counts=[count for part in parts for count in part.counts],
        kinds=[kind for part in parts for kind in part.kinds],
        signals={signal: torch.cat([part.signals[signal] for part in parts]) for signal in parts[0].signals},
        patches=torch.cat(patches) if patches else None,
        deepstack=[torch.cat(layer) for layer in layers],
    )


def run_encoder(
    model: "PreTrainedModel", family: Family, inputs: dict[str, Any], kind: str, **instead: Any
) -> Any:
    """What ``get_image_features`` or ``get_video_features`` gives for ``inputs``, some of them put ``instead``.

    Raises:
        InvalidInputs: it does not take them.
        UnsupportedModel: its weights are not there.
    """
    base: Any = model.base_model
    given = {name: inputs[name] for name in names.encoder_arguments(model, kind) if name in inputs} | instead
    try:
        return names.at(base, f"get_{kind}_features")(**given, return_dict=True)
    except (RuntimeError, ValueError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        if not any(parameter.is_meta for parameter in base.parameters()):
            raise InvalidInputs(f"{family.name} cannot encode {_shapes(given)}: {error}") from error
        raise UnsupportedModel(  # such as LLaVA-NeXT's newline: accelerate fetches it for forward alone
            f"{family.name} with weights offloaded that its encoder needs; stock generate() fails as well: "
            "leave them on a device"
        ) from error


def refuse_non_finite(features: Tensor, counts: Sequence[int], first: int = 0) -> None:
    """Refuse features that hold NaN or infinite values; inside `deferred` when the checks are read.

    Args:
        features: ``[T, D]``, of images one after another.
        counts: tokens of each.
        first: the number of the first image, for the message.

    Raises:
        InvalidFeatures: they do.
    """
    low, high = features.detach().aminmax()

    def error() -> InvalidFeatures:
        parts = torch.split(features.detach(), list(counts))
        bad = [number for number, part in enumerate(parts, first) if not bool(torch.isfinite(part).all())]
        return InvalidFeatures(
            f"image {bad[0]}: the vision encoder gave NaN or infinite values; allowed are finite numbers"
        )

    refuse_if(~((low > -torch.inf) & (high < torch.inf)), error)


def entries_of(features: Any) -> list[Tensor]:
    """``[n, D]`` each, whatever the family nests them in."""
    return [entry.reshape(-1, entry.shape[-1]) for entry in features]


def flattened(features: Any) -> Tensor:
    """``[T, D]``, whatever the family nests them in."""
    if isinstance(features, Tensor):
        return features.reshape(-1, features.shape[-1])
    entries = entries_of(features)
    first, width = entries[0], entries[0].shape[1]
    ends = accumulate((entry.numel() for entry in entries), initial=first.storage_offset())
    apart = first.requires_grad or any(
        entry.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
        or entry.storage_offset() != end
        or not entry.is_contiguous()
        for entry, end in zip(entries, ends, strict=False)
    )
    if apart:
        return torch.cat(entries)
    # Families split one tensor: it is taken up again without a copy.
    return first.as_strided((sum(map(len, entries)), width), (width, 1))


def _encode_kind(
    model: "PreTrainedModel", family: Family, prompt: Prompt, kind: str, signals: frozenset[Signal]
) -> Encoded:
    layer = family.attention(model, kind) if signals & READ.keys() else None
    with ExitStack() as stack:
        calls = [] if layer is None else stack.enter_context(tower.tapped(layer))
        projector = family.projector(model) if PROJECTED & signals else None
        states = None if projector is None else stack.enter_context(_input_tap(projector))
        output = run_encoder(model, family, prompt.inputs, kind)
    features = names.features(output)
    entries = [entry.shape[:-1].numel() for entry in features]
    counts = family.counts(model, prompt.known, kind, entries)
    return Encoded(
        flattened(features),
        counts,
        [kind] * len(counts),
        {
            signal: family.carry(model, prompt.known, kind, *READ[signal](calls))
            for signal in READ
            if signal in signals and layer is not None
        },
        None if states is None else flattened(states),
        [flattened(layer) for layer in names.deepstack(model, output)],
    )


def _shapes(arguments: dict[str, Any]) -> str:
    shapes = {name: list(value.shape) for name, value in arguments.items() if isinstance(value, Tensor)}
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items())


@contextmanager
def _input_tap(module: nn.Module) -> Iterator[list[Tensor]]:
    captured: list[Tensor] = []
    thread = threading.get_ident()  # other threads may run the same module at the same time

    def hook(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if threading.get_ident() == thread:
            captured.append(arguments[0])  # attached: merging methods hand gradients on through it

    handle = module.register_forward_pre_hook(hook)
    try:
        yield captured
    finally:
        handle.remove()
