"""prune(): encode, rank, keep, shrink. prepare() encodes once for many methods and budgets."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from foveate.budget import Budget
from foveate.check import check_inputs, check_method, with_mask
from foveate.encode import Encoded, encode
from foveate.errors import InvalidOption
from foveate.families import Family, family_of
from foveate.hf import names
from foveate.methods import Method, Resizing
from foveate.place import Ranking, choose, place
from foveate.pruned import Pruned, Report
from foveate.settings import Settings
from foveate.shrink import shrink
from foveate.signals import Source, add_text
from foveate.tokens import Signal
from foveate.unwrap import unwrap

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedModel


def prune(
    model: "PreTrainedModel",
    inputs: Mapping[str, Any],
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
) -> Pruned:
    """Encode the images and videos of a prompt and keep only the visual tokens a method ranks best.

    No gradients flow; to train through a pruned prompt, call the model inside `attach`. Models with
    positions of several axes (Qwen-VL, GLM-V) get their ``rope_deltas`` set for this prompt, as their own
    generate() does.

    Args:
        model: a supported vision-language model, stock and unpatched; PEFT's and compiled ones are looked into.
        inputs: what the model's processor returned: ``input_ids [B, L]``, ``pixel_values`` or
            ``pixel_values_videos``, and where rows are padded ``attention_mask [B, L]`` (else it is told as by
            generate(), from the id of padding). Several images per row, and rows without, are fine.
        method: such as `foveate.SPARE()`.
        keep: per image (all its tiles) or video (all its frames): a count (64) or a fraction (0.11). More than
            there are keeps all. Rows that are always kept count.
        keep_total: instead of ``keep``, for all images and videos of a row together: they share it in
            proportion to their tokens.
        positions: ``original`` position ids of the unpruned prompt (default), or ``compact`` ones.
        per_frame: whether each frame of a video is ranked by itself, with its share of the budget, instead of
            all frames' tokens at once.
        question: the question, or one per row; None takes the last user turn of the prompt.
        processor: the processor or tokenizer; None loads the tokenizer beside the checkpoint.
        clip: CLIP pair of the vision tower (model, path or id); None looks beside the checkpoint.
        family: None, or ``"generic"`` for a model type that is not in `foveate.FAMILIES`, at your own risk.

    Returns:
        A mapping for ``model.generate(**pruned)``, with ``kept``, ``orders``, ``grids``, ``rows``, ``kinds`` and
        ``report``.

    Raises:
        UnsupportedModel: the model has no family, or one that cannot do what the method asks.
        InvalidBudget, InvalidOption: a bad budget, ``positions``, ``per_frame`` or ``family``.
        InvalidInputs: no pixels, marks and images that do not match or are masked, pixels with a filled
            cache, explicit positions, encoder options other than the config's.
        InvalidFeatures: the encoder gave NaN or infinite values.
        MissingSignal: the method needs a signal that is not to be had; raised before any work.
    """
    inner = unwrap(model)
    check_method(inner, family_of(inner, family), method)
    settings = Settings(Budget.of_one(keep, keep_total), positions, per_frame)
    with torch.no_grad():
        return prune_with_grad(
            inner,
            with_mask(inner, inputs) if isinstance(inputs, Mapping) else inputs,
            method,
            settings,
            question=question,
            processor=processor,
            clip=clip,
            family=family,
        )


def prune_with_grad(
    model: "PreTrainedModel", inputs: Mapping[str, Any], method: Method, settings: Settings, **sources: Any
) -> Pruned:
    """`prune`, with gradients from the kept features to the encoder where the caller has them on.

    Args:
        model: unwrapped.
        inputs: as `prune`'s, like ``method``.
        method: such as `foveate.SPARE()`.
        settings: the rest of what it is to do.
        sources: `prepare`'s ``question``, ``processor``, ``clip`` and ``family``.
    """
    pruned = prepare(model, inputs, [method], **sources).keep_as(method, settings)
    names.keep_rope_deltas(model, pruned.rope_deltas)
    return pruned


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
        return self.keep_as(method, Settings(Budget.of(keep), positions))

    def keep_as(self, method: Method, settings: Settings) -> Pruned:
        """`keep`, with all settings."""
        check_method(self._model, self._family, method)
        number = self._number(method)
        settled, ranking = self._sources[number].method, self._rankings[number]
        needs = settled.needs
        images = [tokens.with_only(needs) for tokens in self._encoded.images]
        encoded = replace(self._encoded, images=images)
        seconds = dict(self.seconds)
        with _timed(seconds, "select", self._model):
            orders = choose(
                self._model,
                self._family,
                self._prompt,
                encoded,
                ranking,
                settings.budget,
                settings.per_frame,
            )
            placed = place(self._model, self._family, self._prompt, encoded, settled, orders, settings.per_frame)
            kept = [order.sort().values for order in orders]
            placed = [standing.at(order.argsort()) for standing, order in zip(placed, orders, strict=True)]
            features = [standing.features for standing in placed]
            deepstack = [standing.deepstack for standing in placed]
        with _timed(seconds, "shrink", self._model):
            shrunk = shrink(
                self._model,
                self._family,
                self._prompt,
                encoded,
                kept,
                features,
                deepstack,
                settings.positions,
            )
        depth = self._model.config.get_text_config().num_hidden_layers
        report = Report(
            tokens_before=[len(tokens.features) for tokens in images],
            tokens_after=[len(indices) for indices in kept],
            prompt_before=self._attended(),
            prompt_after=shrunk["attention_mask"].sum(dim=1).tolist(),
            seconds=seconds,
            tagger=self._tagger if Signal.QUESTION in needs else None,
            method=settled,
            tokens_per_layer=[[len(indices)] * depth for indices in kept],
            resized=self._family.resizes if isinstance(settled, Resizing) else None,
            _features=[tokens.features.detach() for tokens in images],
            _placed=[rows.detach() for rows in features],
        )
        grids = [tokens.grids for tokens in images]
        locked = [tokens.locked for tokens in images]
        return Pruned(kept, orders, grids, encoded.rows, encoded.kinds, report, self._family, locked, shrunk)

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
    family: str | None = None,
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
        family: None or ``generic``.

    Raises:
        UnsupportedModel, InvalidInputs, InvalidFeatures, InvalidOption: as `prune`.
        MissingSignal: one of the methods needs a signal that is not to be had; raised before any work.
    """
    own = family_of(model, family)
    for method in methods:
        check_method(model, own, method)
    check_inputs(model, own, inputs)
    sources = [Source.find(model, own, method, processor, clip) for method in methods]
    needs = frozenset(signal for source in sources for signal in source.method.needs)
    seconds: dict[str, float] = {}
    prompt = dict(inputs)
    with _timed(seconds, "encode", model):
        encoded = encode(model, own, prompt, needs)
    with _timed(seconds, "relevance", model):
        encoded, tagger = add_text(model, own, prompt, encoded, sources, question)
    rankings = [Ranking(source.method) for source in sources]
    return Prepared(seconds, model, own, prompt, encoded, tagger, sources, rankings)


@contextmanager
def _timed(seconds: dict[str, float], stage: str, model: "PreTrainedModel") -> Iterator[None]:
    start = time.perf_counter()
    yield
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    seconds[stage] = time.perf_counter() - start
