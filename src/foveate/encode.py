"""Run the vision encoder once, and collect only the signals asked for."""

import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveate.errors import InvalidFeatures, InvalidInputs
from foveate.families import Family
from foveate.tokens import Signal, VisualTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class Encoded:
    """What the vision encoder gave.

    Attributes:
        images: one per image, in prompt order.
        rows: the batch row of each image.
        patches: per image ``[N, Dv]``, the states the projector read; None unless asked for.
    """

    images: list[VisualTokens]
    rows: list[int]
    patches: list[Tensor] | None


def encode(
    model: "PreTrainedModel", family: Family, inputs: dict[str, Any], signals: frozenset[Signal]
) -> Encoded:
    """Encode the pixels of ``inputs``, tapping the tower for the signals that arise in it.

    The stock ``get_image_features`` runs, with any attention backend; nothing is patched. Gradients
    flow where the caller has them on.

    Raises:
        InvalidInputs: the placeholders in the prompts and the images do not match.
        InvalidFeatures: the encoder gave NaN or infinite values.
    """
    base: Any = model.base_model
    arguments = _arguments(model, inputs)
    with ExitStack() as taps:
        layer = family.cls_layer(model) if Signal.CLS_ATTENTION in signals else None
        attention = taps.enter_context(_cls_tap(layer)) if layer is not None else None
        states = None
        if Signal.CLIP_RELEVANCE in signals:
            states = taps.enter_context(_input_tap(family.projector(model)))
        output = base.get_image_features(**arguments, return_dict=True)
    features = _finite_features(output)
    rows = _rows_of_images(inputs["input_ids"] == image_token_id(model), [len(f) for f in features])
    images = [_tokens(model, family, f) for f in features]
    if attention is not None:
        images = [_with_cls(tokens, a) for tokens, a in zip(images, _per_image(attention), strict=True)]
    return Encoded(images, rows, None if states is None else _per_image(states))


def encode_resized(
    model: "PreTrainedModel", family: Family, inputs: dict[str, Any], size: tuple[int, int]
) -> list[Tensor]:
    """Per image ``[N, D]``, locked rows included: features of the images resized to ``(height, width)`` tokens.

    Layer, projector and what becomes of a CLS row are those of `encode`. Gradients flow where the caller
    has them on.

    Raises:
        InvalidFeatures: the encoder gave NaN or infinite values.
    """
    base: Any = model.base_model
    arguments = family.resized(model, _arguments(model, inputs), size)
    return _finite_features(base.get_image_features(**arguments, return_dict=True))


def encoder_arguments(model: "PreTrainedModel") -> list[str]:
    """The inputs that the image encoder consumes, by its own signature (generate() asks it, too)."""
    base: Any = model.base_model
    parameters = inspect.signature(base.get_image_features).parameters
    return [name for name in parameters if name not in ("kwargs", "return_dict")]


def image_token_id(model: "PreTrainedModel") -> int:
    """The id of the image placeholder."""
    return int(model.config.image_token_id)


def _arguments(model: "PreTrainedModel", inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: inputs[name] for name in encoder_arguments(model) if name in inputs}


def _finite_features(output: Any) -> list[Tensor]:
    """Per image ``[N, D]``.

    Raises:
        InvalidFeatures: they are not all finite.
    """
    features = [entry.reshape(-1, entry.shape[-1]) for entry in output.pooler_output]
    for index, image in enumerate(features):
        if not bool(torch.isfinite(image).all()):
            raise InvalidFeatures(
                f"image {index}: the vision encoder gave NaN or infinite values; allowed are finite numbers"
            )
    return features


def _tokens(model: "PreTrainedModel", family: Family, features: Tensor) -> VisualTokens:
    locked = family.locked(model, features)
    grid = family.grid(model, len(features))
    return VisualTokens(features, grid, locked, model.config.model_type)


def _with_cls(tokens: VisualTokens, attention: Tensor) -> VisualTokens:
    # The CLS row itself is no patch; where it is handed on (and locked) it gets no score.
    missing = len(tokens.features) - len(attention)
    return replace(tokens, cls_attention=nn.functional.pad(attention, (missing, 0)))


def _per_image(captured: list[Tensor]) -> list[Tensor]:
    return [image for batch in captured for image in batch]


def _rows_of_images(placeholders: Tensor, sizes: Sequence[int]) -> list[int]:
    """The row of each image: placeholders in row-major order are the images' tokens, one by one."""
    counts = placeholders.sum(dim=1).tolist()
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
    if left != 0 or len(rows) != len(sizes) or sum(counts) != sum(sizes):
        raise InvalidInputs(
            f"the prompts hold {counts} image placeholders per row, the images given have {list(sizes)} tokens: "
            "every <image> mark needs one image, in order"
        )
    return rows


@contextmanager
def _cls_tap(attention: Any) -> Iterator[list[Tensor]]:
    """Collects ``[images, N]``: the CLS query's attention to the patches, mean over heads.

    From the projections' outputs, so that it is exact under every attention backend, also those that
    never form the attention matrix. The softmax is over CLS and patches; the CLS column is dropped.
    """
    captured: list[Tensor] = []
    query: list[Tensor] = []
    heads = int(attention.num_heads)
    scale = float(attention.scale)

    def on_query(output: Tensor) -> None:
        query.append(output[:, 0].detach())

    def on_key(output: Tensor) -> None:
        images, n, _ = output.shape
        q = query.pop().reshape(images, heads, -1).float()
        k = output.detach().reshape(images, n, heads, -1).float()
        scores = torch.einsum("bhd,bnhd->bhn", q, k) * scale
        captured.append(scores.softmax(dim=-1).mean(dim=1)[:, 1:])

    with _output_tap(attention.q_proj, on_query), _output_tap(attention.k_proj, on_key):
        yield captured


@contextmanager
def _output_tap(module: Any, see: Any) -> Iterator[None]:
    thread = threading.get_ident()  # other threads may run the same module at the same time

    def hook(_module: nn.Module, _arguments: Any, output: Tensor) -> None:
        if threading.get_ident() == thread:
            see(output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _input_tap(module: nn.Module) -> Iterator[list[Tensor]]:
    captured: list[Tensor] = []
    thread = threading.get_ident()

    def hook(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if threading.get_ident() == thread:
            captured.append(arguments[0].detach())

    handle = module.register_forward_pre_hook(hook)
    try:
        yield captured
    finally:
        handle.remove()
