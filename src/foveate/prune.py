"""prune(): encode, rank, keep, shrink."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveate.budget import Budget
from foveate.encode import Encoded, encode, encoder_arguments, image_token_id
from foveate.errors import InvalidBudget, InvalidInputs, InvalidOption
from foveate.families import Family, family_of
from foveate.methods.base import Method
from foveate.select import residual_energy
from foveate.shrink import POSITIONS, Shrunk, shrink
from foveate.signals import Source
from foveate.tokens import VisualTokens

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedModel


@dataclass(frozen=True, eq=False)
class Report:
    """What pruning did.

    Attributes:
        tokens_before: visual tokens of each image.
        tokens_after: visual tokens kept of each image.
        prompt_before: attended prompt tokens of each row, visual tokens included.
        prompt_after: the same, pruned.
        seconds: wall-clock per stage: ``encode``, ``relevance``, ``select``, ``shrink``.
        tagger: what found the question's nouns (``spacy``, ``hanta``, ``content words``), or None.
        method: the method with its ``auto`` options decided.
    """

    tokens_before: list[int]
    tokens_after: list[int]
    prompt_before: list[int]
    prompt_after: list[int]
    seconds: dict[str, float]
    tagger: str | None
    method: Method
    _features: list[Tensor] = field(repr=False)
    _orders: list[Tensor] = field(repr=False)

    @cached_property
    def residual_energy(self) -> list[float]:
        """Of each image, the share of the features' energy that the kept tokens do not span.

        Computed at the first access (as costly as the selection itself).
        """
        pairs = zip(self._features, self._orders, strict=True)
        return [float(residual_energy(features, order)[-1]) for features, order in pairs]


@dataclass(frozen=True, eq=False)
class Pruned(Mapping[str, Any]):
    """Keyword arguments for ``model.generate(**pruned)`` or ``model(**pruned)``.

    Attributes:
        kept: per image, ascending indices ``[k]`` of the tokens kept.
        orders: per image, the same indices in order of selection, locked rows first (raster order where
            all are kept).
        grids: per image, ``(height, width)`` of its tokens, raster order, locked rows left out.
        rows: the batch row of each image.
        report: counts, seconds, energies.
    """

    kept: list[Tensor]
    orders: list[Tensor]
    grids: list[tuple[int, int]]
    rows: list[int]
    report: Report
    _shrunk: Shrunk = field(repr=False)

    def detached(self) -> "Pruned":
        """The same without the graph that gradients would flow through."""
        return replace(self, _shrunk=self._shrunk.detached())

    def __getitem__(self, key: str) -> Any:
        return self._shrunk[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shrunk)

    def __len__(self) -> int:
        return len(self._shrunk)


def prune(
    model: "PreTrainedModel",
    inputs: Mapping[str, Any],
    method: Method,
    *,
    keep: int | float | Budget,
    positions: str = "original",
    question: str | Sequence[str] | None = None,
    processor: Any = None,
    clip: "CLIPModel | str | Path | None" = None,
) -> Pruned:
    """Encode the images of a prompt and keep only the visual tokens a method ranks best.

    No gradients flow; to train through a pruned prompt, call the model inside `attach`.

    Args:
        model: a supported vision-language model, stock and unpatched.
        inputs: what the model's processor returned: ``input_ids [B, L]``, ``pixel_values``, and where
            rows are padded ``attention_mask [B, L]``. Several images per row, and rows without, are fine.
        method: such as `foveate.SPARE()`.
        keep: per image: a count (64) or a fraction (0.11). More than there are keeps all.
        positions: ``original`` position ids of the unpruned prompt (default), or ``compact`` ones.
        question: the question, or one per row; None takes the last user turn of the prompt.
        processor: the processor or tokenizer; None loads the tokenizer beside the checkpoint.
        clip: CLIP pair of the vision tower (model, path or id); None looks beside the checkpoint.

    Returns:
        A mapping for ``model.generate(**pruned)``, with ``kept``, ``orders``, ``grids``, ``rows`` and
        ``report``.

    Raises:
        UnsupportedModel: the model has no family.
        InvalidBudget, InvalidOption: a bad ``keep`` or ``positions``.
        InvalidInputs: no pixels, marks and images that do not match or are masked, pixels with a filled
            cache, explicit positions, encoder options other than the config's.
        InvalidFeatures: the encoder gave NaN or infinite values.
        MissingSignal: the method needs a signal that is not to be had; raised before any work.
    """
    with torch.no_grad():
        return prune_with_grad(
            model,
            inputs,
            method,
            keep=keep,
            positions=positions,
            question=question,
            processor=processor,
            clip=clip,
        )


def prune_with_grad(
    model: "PreTrainedModel",
    inputs: Mapping[str, Any],
    method: Method,
    *,
    keep: int | float | Budget,
    positions: str,
    question: str | Sequence[str] | None,
    processor: Any,
    clip: "CLIPModel | str | Path | None",
) -> Pruned:
    """`prune`, with gradients from the kept features to the encoder where the caller has them on."""
    family, budget = check_settings(model, method, keep, positions)
    check_inputs(model, inputs)
    source = Source.find(model, method, processor, clip)
    seconds: dict[str, float] = {}
    prompt = dict(inputs)
    with _timed(seconds, "encode", model):
        encoded = encode(model, family, prompt, source.method.needs)
    with _timed(seconds, "relevance", model):
        encoded, tagger = source.add_text(model, prompt, encoded, question)
    with _timed(seconds, "select", model):
        orders = _select(model, prompt, encoded, source.method, budget)
        kept = [order.sort().values for order in orders]
    with _timed(seconds, "shrink", model):
        shrunk = shrink(model, prompt, encoded, kept, positions)
    mask = prompt.get("attention_mask")
    report = Report(
        tokens_before=[len(tokens.features) for tokens in encoded.images],
        tokens_after=[len(indices) for indices in kept],
        prompt_before=(torch.ones_like(prompt["input_ids"]) if mask is None else mask).sum(dim=1).tolist(),
        prompt_after=shrunk["attention_mask"].sum(dim=1).tolist(),
        seconds=seconds,
        tagger=tagger,
        method=source.method,
        _features=[tokens.features.detach() for tokens in encoded.images],
        _orders=orders,
    )
    return Pruned(kept, orders, [tokens.grid for tokens in encoded.images], encoded.rows, report, shrunk)


def check_settings(
    model: "PreTrainedModel", method: Method, keep: int | float | Budget, positions: str
) -> tuple[Family, Budget]:
    """The family and the budget.

    Raises:
        UnsupportedModel, InvalidBudget, InvalidOption: as `prune` says.
    """
    if not isinstance(method, Method):
        raise InvalidOption(f"method={method!r}: allowed is an instance such as foveate.SPARE()")
    if positions not in POSITIONS:
        raise InvalidOption(f"positions={positions!r}: allowed are {', '.join(map(repr, POSITIONS))}")
    return family_of(model), Budget.of(keep)


def check_inputs(model: "PreTrainedModel", inputs: Mapping[str, Any]) -> None:
    """Refuse what cannot be pruned soundly.

    Raises:
        InvalidInputs: as `prune` says.
    """
    if not isinstance(inputs, Mapping):
        raise InvalidInputs(
            f"inputs of type {type(inputs).__name__}: allowed is what the model's processor returned"
        )
    _check_leave_out(model, inputs)
    for name in ("input_ids", "pixel_values"):
        if not isinstance(inputs.get(name), Tensor):
            raise InvalidInputs(
                f"{name} is {type(inputs.get(name)).__name__}: allowed is a tensor, as the processor returns it "
                "for an image with return_tensors='pt'"
            )
    mask, ids = inputs.get("attention_mask"), inputs["input_ids"]
    if ids.dim() != 2 or (mask is not None and mask.shape != ids.shape):
        shapes = f"{tuple(ids.shape)} and {None if mask is None else tuple(mask.shape)}"
        raise InvalidInputs(f"input_ids and attention_mask of shapes {shapes}: allowed is [B, L] for both")
    if mask is not None:
        hidden = int(((ids == image_token_id(model)) & ~mask.bool()).sum())
        if hidden:
            raise InvalidInputs(f"attention_mask hides {hidden} image placeholders: allowed is none, prune hides")


def _check_leave_out(model: "PreTrainedModel", inputs: Mapping[str, Any]) -> None:
    cache = inputs.get("past_key_values")
    if cache is not None and (not hasattr(cache, "get_seq_length") or cache.get_seq_length() > 0):
        raise InvalidInputs("pixel_values together with a filled past_key_values: pass images with an empty cache")
    for name in ("position_ids", "inputs_embeds", "mm_encoder_outputs"):
        if inputs.get(name) is not None:
            raise InvalidInputs(f"{name} given together with images to prune: leave it out, prune sets it")
    if isinstance(inputs.get("logits_to_keep"), Tensor):
        raise InvalidInputs("logits_to_keep as indices: allowed is a count, columns move when tokens are dropped")
    for name in encoder_arguments(model):  # such as vision_feature_layer: grids and signals follow the config
        given, set_in_config = inputs.get(name), getattr(model.config, name, None)
        if given is not None and set_in_config is not None and given != set_in_config:
            raise InvalidInputs(f"{name}={given!r}: allowed is the config's {set_in_config!r}; set it there")


@torch.no_grad()
def _select(
    model: "PreTrainedModel", prompt: dict[str, Any], encoded: Encoded, method: Method, budget: Budget
) -> list[Tensor]:
    """Per image, the indices to keep: locked rows first, then in order of selection."""
    at_the_end = _images_at_the_end(model, prompt, encoded)
    return [_keep(t, method, budget, index in at_the_end) for index, t in enumerate(encoded.images)]


def _keep(tokens: VisualTokens, method: Method, budget: Budget, hold_last: bool) -> Tensor:
    n = len(tokens.features)
    k = budget.count(n)
    locked = tokens.locked.nonzero().flatten()
    if k < len(locked) + hold_last:
        raise InvalidBudget(
            f"keep={budget.keep!r}: {len(locked) + hold_last} tokens of this image are always kept"
        )
    if k == n:
        return torch.arange(n, device=locked.device)
    if k == len(locked):
        return locked
    free = (~tokens.locked).nonzero().flatten()
    order = torch.cat([locked, free[method.rank(tokens.unlocked(), k - len(locked))]])
    if hold_last and not bool((order == n - 1).any()):
        order[-1] = n - 1
    return order


def _images_at_the_end(model: "PreTrainedModel", prompt: dict[str, Any], encoded: Encoded) -> set[int]:
    """Images whose last token ends a row: its query writes the first answer token, so it must stay."""
    found = set()
    ids, mask = prompt["input_ids"], prompt.get("attention_mask")
    for row in set(encoded.rows):
        attended = ids[row] if mask is None else ids[row][mask[row].bool()]
        if int(attended[-1]) == image_token_id(model):
            found.add(max(index for index, owner in enumerate(encoded.rows) if owner == row))
    return found


@contextmanager
def _timed(seconds: dict[str, float], stage: str, model: "PreTrainedModel") -> Iterator[None]:
    start = time.perf_counter()
    yield
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    seconds[stage] = time.perf_counter() - start
