"""Run the vision encoders once, and collect only the signals asked for."""

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveate.errors import InvalidFeatures, InvalidInputs, UnsupportedModel
from foveate.families import PIXELS, Family
from foveate.hf import names
from foveate.tokens import Signal, VisualTokens
from foveate.vision_attention import attention_tap, key_tap

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What is read off the tower's attention layer, with what.
TAPS: dict[Signal, Callable[[nn.Module], AbstractContextManager[list[Tensor]]]] = {
    Signal.CLS_ATTENTION: partial(attention_tap, first=True),
    Signal.RECEIVED_ATTENTION: partial(attention_tap, first=False),
    Signal.JOINT_ATTENTION: partial(attention_tap, first=True, joint=True),
    Signal.KEYS: key_tap,
}
PROJECTED = {Signal.CLIP_RELEVANCE, Signal.PATCHES}  # what is made of the projector's input


@dataclass(frozen=True, eq=False)
class Encoded:
    """What the vision encoders gave: images in prompt order, then videos.

    Attributes:
        images: one per image or video.
        rows: the batch row of each.
        kinds: ``image`` or ``video``, of each.
        patches: per image ``[N, Dv]``, the states the projector read; None unless asked for.
        deepstack: per image, per layer ``[N, D]``: what the language model adds to the tokens' states in its
            first layers; empty for models without.
    """

    images: list[VisualTokens]
    rows: list[int]
    kinds: list[str]
    patches: list[Tensor] | None
    deepstack: list[list[Tensor]]


def encode(
    model: "PreTrainedModel", family: Family, inputs: dict[str, Any], signals: frozenset[Signal]
) -> Encoded:
    """Encode the pixels of ``inputs``, tapping the tower for the signals that arise in it.

    The stock ``get_image_features`` and ``get_video_features`` run, with any attention backend; nothing is
    patched. Gradients flow where the caller has them on.

    Raises:
        InvalidInputs: the placeholders in the prompts and the images do not match.
        InvalidFeatures: the encoder gave NaN or infinite values.
    """
    parts = [
        _encode_kind(model, family, inputs, kind, signals)
        for kind in family.kinds
        if inputs.get(PIXELS[kind]) is not None
    ]
    patches = [part.patches for part in parts if part.patches is not None]
    return Encoded(
        images=[image for part in parts for image in part.images],
        rows=[row for part in parts for row in part.rows],
        kinds=[kind for part in parts for kind in part.kinds],
        patches=[image for part in patches for image in part] if patches else None,
        deepstack=[layers for part in parts for layers in part.deepstack],
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
    given = {**_arguments(model, inputs, kind), **instead}
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


def entries_of(features: Any) -> list[Tensor]:
    """``[n, D]`` each, whatever the family nests them in."""
    return [entry.reshape(-1, entry.shape[-1]) for entry in features]


def finite(features: Tensor, index: int) -> Tensor:
    """The features of image ``index``.

    Raises:
        InvalidFeatures: NaN or infinite values.
    """
    if not bool(torch.isfinite(features).all()):
        raise InvalidFeatures(
            f"image {index}: the vision encoder gave NaN or infinite values; allowed are finite numbers"
        )
    return features


def encoder_arguments(model: "PreTrainedModel", kind: str) -> dict[str, bool]:
    """The inputs that an encoder consumes, and whether it must have them, by its own signature.

    generate() asks the signature, too.
    """
    base: Any = model.base_model
    encoder = getattr(base, f"get_{kind}_features", None)
    if encoder is None:
        return {}
    parameters = inspect.signature(encoder).parameters.values()
    return {
        parameter.name: parameter.default is parameter.empty
        for parameter in parameters
        if parameter.kind is not parameter.VAR_KEYWORD and parameter.name != "return_dict"
    }


def placeholder_id(model: "PreTrainedModel", kind: str) -> int | None:
    """The id of the placeholder of images or videos; None where the model has none."""
    token = getattr(model.config, f"{kind}_token_id", None)
    return None if token is None else int(token)


def placeholders(model: "PreTrainedModel", family: Family, input_ids: Tensor) -> Tensor:
    """Where ``input_ids [B, L]`` stand for images or videos: bool, the same shape."""
    ids = [token for kind in family.kinds if (token := placeholder_id(model, kind)) is not None]
    return torch.isin(input_ids, torch.tensor(ids, device=input_ids.device))


def _encode_kind(
    model: "PreTrainedModel", family: Family, inputs: dict[str, Any], kind: str, signals: frozenset[Signal]
) -> Encoded:
    layer = family.attention(model, kind)
    with ExitStack() as stack:
        taps = {
            signal: stack.enter_context(tap(layer))
            for signal, tap in TAPS.items()
            if signal in signals and layer is not None
        }
        projector = family.projector(model) if PROJECTED & signals else None
        states = None if projector is None else stack.enter_context(_input_tap(projector))
        output = run_encoder(model, family, inputs, kind)
    entries = entries_of(names.features(output))
    counts = family.counts(model, inputs, kind, [len(entry) for entry in entries])
    token = placeholder_id(model, kind)
    rows = _rows_of_images(inputs["input_ids"] == token, counts, kind, sum(map(len, entries)))
    images = [
        _tokens(model, family, inputs, kind, index, finite(features, index))
        for index, features in enumerate(torch.split(torch.cat(entries), counts))
    ]
    for signal, captured in taps.items():
        carried = family.carry(model, inputs, kind, captured)
        images = [_with_scores(image, signal, scores) for image, scores in zip(images, carried, strict=True)]
    patches = None if states is None else list(torch.split(torch.cat(entries_of(states)), counts))
    if patches is not None and Signal.PATCHES in signals:
        images = [replace(image, patches=own) for image, own in zip(images, patches, strict=True)]
    layers = [torch.split(torch.cat(entries_of(layer)), counts) for layer in names.deepstack(model, output)]
    return Encoded(
        images,
        rows,
        [kind] * len(images),
        patches,
        [list(image) for image in zip(*layers, strict=True)] if layers else [[] for _ in images],
    )


def _arguments(model: "PreTrainedModel", inputs: dict[str, Any], kind: str) -> dict[str, Any]:
    return {name: inputs[name] for name in encoder_arguments(model, kind) if name in inputs}


def _shapes(arguments: dict[str, Any]) -> str:
    shapes = {name: list(value.shape) for name, value in arguments.items() if isinstance(value, Tensor)}
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items())


def _tokens(
    model: "PreTrainedModel", family: Family, inputs: dict[str, Any], kind: str, index: int, features: Tensor
) -> VisualTokens:
    layout = family.layout(model, inputs, kind, index, len(features))
    return VisualTokens(features, layout.grids, layout.locked.to(features.device), model.config.model_type)


def _with_scores(tokens: VisualTokens, signal: Signal, scores: Tensor) -> VisualTokens:
    """The tokens with a signal; rows that are locked and no part of the picture get 0."""
    if len(scores) < len(tokens.features):
        full = scores.new_zeros(len(tokens.features), *scores.shape[1:])
        full[~tokens.locked] = scores
        scores = full
    added: dict[str, Any] = {signal.value: scores}
    return replace(tokens, **added)


def _rows_of_images(flags: Tensor, sizes: Sequence[int], kind: str, encoded: int) -> list[int]:
    """The row of each image: placeholders in row-major order are the images' tokens, one by one."""
    counts = flags.sum(dim=1).tolist()
    rows: list[int] = []
    left = 0
    row = -1
    for size in sizes:
        while left == 0 and row + 1 < len(counts):
            row += 1
            left = counts[row]
        rows.append(row)
        left -= size
        if left < 0:
            break
    if left != 0 or len(rows) != len(sizes) or not sum(counts) == sum(sizes) == encoded:
        raise InvalidInputs(
            f"the prompts hold {counts} {kind} placeholders per row, the {kind}s given have {encoded} tokens"
            f"{'' if sum(sizes) != encoded else f' ({list(sizes)})'}: "
            f"every <{kind}> mark needs one {kind}, in order"
        )
    return rows


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
