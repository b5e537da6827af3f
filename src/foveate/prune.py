"""prune(): encode, rank, keep, shrink. prepare() encodes once for many methods and budgets."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from foveate.budget import Budget
from foveate.check import check_inputs, check_method, check_settings
from foveate.encode import Encoded, encode
from foveate.errors import InvalidOption
from foveate.families import Family, family_of
from foveate.methods.base import Method
from foveate.place import Ranking, choose, place
from foveate.pruned import Pruned, Report
from foveate.shrink import shrink
from foveate.signals import Source, add_text
from foveate.tokens import Signal

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedModel


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
        UnsupportedModel: the model has no family, or one that cannot do what the method asks.
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
    check_settings(model, method, keep, positions)
    prepared = prepare(model, inputs, [method], question=question, processor=processor, clip=clip)
    return prepared.keep(method, keep, positions)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A prompt whose images are encoded, to be pruned by several methods at several budgets.

    Internal for now: the benchmark's way in, importable from here alone.

    Attributes:
        seconds: wall-clock of ``encode`` and ``relevance``, for all methods together.
    """

    seconds: dict[str, float]
    _model: "PreTrainedModel" = field(repr=False)
    _family: Family = field(repr=False)
    _prompt: dict[str, Any] = field(repr=False)
    _encoded: Encoded = field(repr=False)
    _tagger: str | None = field(repr=False)
    _sources: list[Source] = field(repr=False)
    _rankings: list[Ranking] = field(repr=False)

    def keep(self, method: Method, keep: int | float | Budget, positions: str = "original") -> Pruned:
        """The prompt with the tokens that a method keeps: what `prune` gives.

        The method is shown the signals that it needs and no others, whatever was collected for the rest.
        A nested method is ranked once where the largest budget comes first: smaller ones take a prefix.

        Args:
            method: one of those prepared for, or an equal one.
            keep: as `prune`'s.
            positions: as `prune`'s.

        Raises:
            InvalidOption: another method or ``positions``.
            InvalidBudget: a bad ``keep``.
        """
        budget = check_settings(self._model, method, keep, positions)
        number = self._number(method)
        settled = self._sources[number].method
        needs = settled.needs
        images = [tokens.with_only(needs) for tokens in self._encoded.images]
        encoded = replace(self._encoded, images=images)
        seconds = dict(self.seconds)
        with _timed(seconds, "select", self._model):
            orders = choose(self._model, self._prompt, encoded, self._rankings[number], budget)
            placed = place(self._model, self._family, self._prompt, encoded, settled, orders)
            kept = [order.sort().values for order in orders]
            placed = [features[order.argsort()] for features, order in zip(placed, orders, strict=True)]
        with _timed(seconds, "shrink", self._model):
            shrunk = shrink(self._model, self._prompt, encoded, kept, placed, positions)
        report = Report(
            tokens_before=[len(tokens.features) for tokens in images],
            tokens_after=[len(indices) for indices in kept],
            prompt_before=self._attended(),
            prompt_after=shrunk["attention_mask"].sum(dim=1).tolist(),
            seconds=seconds,
            tagger=self._tagger if Signal.QUESTION in needs else None,
            method=settled,
            _features=[tokens.features.detach() for tokens in images],
            _placed=[features.detach() for features in placed],
        )
        return Pruned(kept, orders, [tokens.grid for tokens in images], encoded.rows, report, shrunk)

    def _number(self, method: Method) -> int:
        for number, source in enumerate(self._sources):
            if source.asked is method or source.asked == method:
                return number
        known = ", ".join(repr(source.asked) for source in self._sources) or "none"
        raise InvalidOption(f"method={method!r}: allowed are those prepared for, {known}")

    def _attended(self) -> list[int]:
        mask = self._prompt.get("attention_mask")
        counted = torch.ones_like(self._prompt["input_ids"]) if mask is None else mask
        return list(counted.sum(dim=1).tolist())


def prepare(
    model: "PreTrainedModel",
    inputs: Mapping[str, Any],
    methods: Sequence[Method],
    *,
    question: str | Sequence[str] | None = None,
    processor: Any = None,
    clip: "CLIPModel | str | Path | None" = None,
) -> Prepared:
    """Encode the images of a prompt once, with every signal that any of the methods needs here.

    ``prepare(model, inputs, methods).keep(method, keep)`` is ``prune(model, inputs, method, keep=keep)``,
    except that gradients flow where the caller has them on.

    Args:
        model: as `prune`'s, like all others but ``methods``.
        inputs: what the model's processor returned.
        methods: what `Prepared.keep` will be called with.
        question: the question, or one per row.
        processor: the processor or tokenizer.
        clip: CLIP pair of the vision tower.

    Raises:
        UnsupportedModel, InvalidInputs, InvalidFeatures, InvalidOption: as `prune`.
        MissingSignal: one of the methods needs a signal that is not to be had; raised before any work.
    """
    family = family_of(model)
    for method in methods:
        check_method(model, method)
    check_inputs(model, inputs)
    sources = [Source.find(model, method, processor, clip) for method in methods]
    needs = frozenset(signal for source in sources for signal in source.method.needs)
    seconds: dict[str, float] = {}
    prompt = dict(inputs)
    with _timed(seconds, "encode", model):
        encoded = encode(model, family, prompt, needs)
    with _timed(seconds, "relevance", model):
        encoded, tagger = add_text(model, prompt, encoded, sources, question)
    rankings = [Ranking(source.method) for source in sources]
    return Prepared(seconds, model, family, prompt, encoded, tagger, sources, rankings)


@contextmanager
def _timed(seconds: dict[str, float], stage: str, model: "PreTrainedModel") -> Iterator[None]:
    start = time.perf_counter()
    yield
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    seconds[stage] = time.perf_counter() - start
