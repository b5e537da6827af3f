"""prune(): encode, rank, keep, shrink. prepare() encodes once for many methods and budgets."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from foveate.budget import Budget
from foveate.errors import InvalidOption
from foveate.families import Family, family_of
from foveate.flow.check import check_method
from foveate.flow.choose import Ranking, choose
from foveate.flow.encode import Encoded, encode, refuse_non_finite
from foveate.flow.images import Image, images_of
from foveate.flow.plan import Plan
from foveate.flow.prompt import Prompt
from foveate.flow.replace import standing
from foveate.flow.shrink import shrink
from foveate.flow.signals import Source, Text
from foveate.hf import names
from foveate.hf.unwrap import unwrap
from foveate.methods import Method
from foveate.pruned import Pruned, report_of
from foveate.select.checks import read_together
from foveate.select.engine import on_host_unless_told
from foveate.settings import Settings

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
    use_cache: bool = True,
    timed: bool = False,
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
        use_cache: whether the answer will be generated with a KV cache. The pruned prompt carries it, so that
            ``generate(**pruned, use_cache=False)`` is an error: without a cache, a prompt must be made for it.
        timed: whether to measure the stages, for ``report.seconds``. On a GPU each measurement waits for it.

    Returns:
        A mapping for ``model.generate(**pruned)``, with ``kept``, ``orders``, ``grids``, ``rows``, ``kinds`` and
        ``report``.

    Raises:
        UnsupportedModel: the model has no family, or one that cannot do what the method asks.
        InvalidBudget, InvalidOption: a bad budget, ``positions``, ``per_frame`` or ``family``.
        InvalidInputs: no pixels, marks and images that do not match or are masked, pixels with a filled
            cache, explicit positions, packed sequences, a tensor with one entry per token of a name that is not
            known, encoder options other than the config's.
        InvalidFeatures: the encoder gave NaN or infinite values.
        MissingSignal: the method needs a signal that is not to be had; raised before any work.
    """
    inner = unwrap(model)
    check_method(inner, family_of(inner, family), method)
    settings = Settings(Budget.of_one(keep, keep_total), positions, per_frame)
    if isinstance(inputs, Mapping) and inputs.get("use_cache") is not None:
        use_cache = inputs["use_cache"]
    sources = {"question": question, "processor": processor, "clip": clip, "family": family}
    with torch.no_grad():
        return prune_with_grad(inner, inputs, method, settings, use_cache=use_cache, timed=timed, **sources)


@on_host_unless_told
def prune_with_grad(
    model: "PreTrainedModel",
    inputs: Mapping[str, Any],
    method: Method,
    settings: Settings,
    use_cache: bool | None = True,
    timed: bool = False,
    **sources: Any,
) -> Pruned:
    """`prune`, with gradients from the kept features to the encoder where the caller has them on.

    Args:
        model: unwrapped.
        inputs: as `prune`'s, like ``method``.
        method: such as `foveate.SPARE()`.
        settings: the rest of what it is to do.
        use_cache: as `prune`'s; None for a plain forward, whose positions count all columns.
        timed: as `prune`'s.
        sources: `prepare`'s ``question``, ``processor``, ``clip`` and ``family``.
    """
    prepared = prepare(model, inputs, [method], generates=use_cache is not None, timed=timed, **sources)
    pruned = prepared.keep_as(method, settings, use_cache)
    names.keep_rope_deltas(model, pruned.rope_deltas)
    return pruned


@dataclass(frozen=True, eq=False)
class Prepared:
    """A prompt whose images are encoded, to be pruned by several methods at several budgets.

    Internal for now: the benchmark's way in, importable from here alone.

    Attributes:
        seconds: wall-clock of ``encode`` and ``relevance``, for all methods together; empty unless timed.
    """

    seconds: dict[str, float]
    _model: "PreTrainedModel" = field(repr=False)
    _family: Family = field(repr=False)
    _prompt: Prompt = field(repr=False)
    _encoded: Encoded = field(repr=False)
    _images: list[Image] = field(repr=False)
    _text: Text | None = field(repr=False)
    _sources: list[Source] = field(repr=False)
    _rankings: list[Ranking] = field(repr=False)
    _timed: bool = field(repr=False)

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

    @on_host_unless_told
    def keep_as(self, method: Method, settings: Settings, use_cache: bool | None = True) -> Pruned:
        """`keep`, with all settings."""
        check_method(self._model, self._family, method)
        number = self._number(method)
        source = self._sources[number]
        one_axis = names.rope_index(self._model) is None
        guard = use_cache is False and one_axis and settings.positions == "original"
        plan = Plan.of(self._prompt, self._images, settings, guard)
        seconds = dict(self.seconds)
        watch = _Watch(self._model, seconds if self._timed else None)

        def made() -> tuple[Pruned, Ranking]:
            ranking = self._rankings[number].tried()
            refuse_non_finite(self._encoded.features, self._encoded.counts)
            with watch.stage("select"):
                chosen = choose(plan, self._encoded, self._text, ranking)
                rows, layers = standing(
                    self._model, self._family, self._encoded, self._text, source.method, chosen
                )
            with watch.stage("shrink"):
                shrunk = shrink(self._model, self._family, chosen, rows, layers, use_cache)
            tagger = None if self._text is None else self._text.tagger
            report = report_of(
                self._model, self._family, chosen, self._encoded, rows, source.method, seconds, tagger
            )
            return Pruned(chosen, shrunk, report, self._family), ranking

        pruned, self._rankings[number] = read_together(made)  # orders whose checks were read, and no others
        return pruned

    def _number(self, method: Method) -> int:
        for number, source in enumerate(self._sources):
            if source.asked is method or source.asked == method:
                return number
        known = ", ".join(repr(source.asked) for source in self._sources) or "none"
        raise InvalidOption(f"method={method!r}: allowed are those prepared for, {known}")


@on_host_unless_told
def prepare(
    model: "PreTrainedModel",
    inputs: Mapping[str, Any],
    methods: Sequence[Method],
    *,
    question: str | Sequence[str] | None = None,
    processor: Any = None,
    clip: "CLIPModel | str | Path | None" = None,
    family: str | None = None,
    generates: bool = True,
    timed: bool = False,
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
        generates: whether generate() will read the prompt, else a plain forward.
        timed: as `prune`'s.

    Raises:
        UnsupportedModel, InvalidInputs, InvalidFeatures, InvalidOption: as `prune`.
        MissingSignal: one of the methods needs a signal that is not to be had; raised before any work.
    """
    its_family = family_of(model, family)
    for method in methods:
        check_method(model, its_family, method)
    prompt = Prompt.read(model, its_family, inputs, generates)
    sources = [Source.find(model, its_family, method, processor, clip) for method in methods]
    needs = frozenset(signal for source in sources for signal in source.method.needs)
    seconds: dict[str, float] = {}
    watch = _Watch(model, seconds if timed else None)
    with watch.stage("encode"):
        encoded = encode(model, its_family, prompt, needs)
    images = images_of(model, its_family, prompt, encoded.counts, encoded.kinds)
    with watch.stage("relevance"):
        text = Text.read(model, its_family, prompt, sources, question)
    rankings = [Ranking(source.method, model.config.model_type) for source in sources]
    return Prepared(seconds, model, its_family, prompt, encoded, images, text, sources, rankings, timed)


@dataclass(frozen=True)
class _Watch:
    """Measures stages where it is asked to, and waits for a GPU only then."""

    model: "PreTrainedModel"
    seconds: dict[str, float] | None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if self.seconds is None:
            yield
            return
        start = self._now()
        yield
        self.seconds[name] = self._now() - start

    def _now(self) -> float:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return time.perf_counter()
