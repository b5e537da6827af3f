"""What pruning gives back: the keyword arguments for the model, and a report."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveate.families import Family, View
from foveate.flow.choose import Chosen
from foveate.flow.encode import Encoded
from foveate.flow.plan import Plan
from foveate.flow.shrink import Shrunk, source_of
from foveate.methods import Compose, Inside, Method, Resizing
from foveate.select import energy_outside
from foveate.select.engine import on_host_unless_told
from foveate.tokens import Signal

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class Report:
    """What pruning did.

    Attributes:
        tokens_before: visual tokens of each image.
        tokens_after: visual tokens kept of each image.
        prompt_before: attended prompt tokens of each row, visual tokens included.
        prompt_after: the same, pruned.
        seconds: wall-clock per stage, where it was measured: ``encode``, ``relevance``, ``select`` (with merging,
            and with the encoding of a smaller image), ``shrink``.
        tagger: what found the question's nouns (``spacy``, ``hanta``, ``content words``), or None.
        method: the method with its ``auto`` options decided.
        tokens_per_layer: of each image, the tokens that each layer of the language model works on.
        resized: of methods that ask for a smaller image, what becomes of it: ``encoded as it is``, or ``resized
            down and up`` to the size that the vision tower wants; None of all others.
    """

    tokens_before: list[int]
    tokens_after: list[int]
    prompt_before: list[int]
    prompt_after: list[int]
    seconds: dict[str, float]
    tagger: str | None
    method: "Method | Inside | Compose"
    tokens_per_layer: list[list[int]]
    resized: str | None
    _features: Tensor = field(repr=False)
    _placed: Tensor = field(repr=False)

    @cached_property
    @on_host_unless_told
    def residual_energy(self) -> list[float]:
        """Of each image, the share of its features' energy outside the span of the tokens handed on.

        ``||V - P V||^2 / ||V||^2``, with ``V`` all features of the full-size image and ``P`` the projector
        on the span of what the language model is given: tokens kept, means of blocks, or the tokens of a
        smaller image. The last two are no rows of ``V``. Computed at the first access (as costly as the
        selection itself).
        """
        pairs = zip(
            torch.split(self._features, self.tokens_before),
            torch.split(self._placed, self.tokens_after),
            strict=True,
        )
        return [float(energy_outside(features, placed)) for features, placed in pairs]


@dataclass(frozen=True, eq=False)
class Pruned(Mapping[str, Any]):
    """Keyword arguments for ``model.generate(**pruned)`` or ``model(**pruned)``.

    Attributes:
        chosen: the plan, and the tokens that stay.
        report: counts, seconds, energies.
    """

    chosen: Chosen = field(repr=False)
    _shrunk: Shrunk = field(repr=False)
    report: Report
    _family: Family = field(repr=False)

    @property
    def plan(self) -> Plan:
        """What was known on the host."""
        return self.chosen.plan

    @cached_property
    @on_host_unless_told
    def kept(self) -> list[Tensor]:
        """Per image, ascending indices ``[k]`` of the tokens kept; of methods that merge or resize, the places.

        A place is what a token's position and column hang on.
        """
        ascending = self.chosen.ascending
        return self.chosen.of_images(None if ascending is None else ascending[0], self._device)

    @cached_property
    @on_host_unless_told
    def orders(self) -> list[Tensor]:
        """Per image, the same in order of selection, locked rows first; raster order where all are kept."""
        return self.chosen.of_images(self.chosen.order, self._device)

    @property
    def grids(self) -> list[tuple[tuple[int, int], ...]]:
        """Per image, ``(height, width)`` of each of its tiles or frames, in tokens.

        The tokens that are not locked are these grids one after the other, each in raster order.
        """
        return [image.grids for image in self.plan.images]

    @property
    def rows(self) -> list[int]:
        """The batch row of each image."""
        return self.plan.rows

    @property
    def kinds(self) -> list[str]:
        """``image`` or ``video``; all images of a prompt come first, then its videos."""
        return [image.kind for image in self.plan.images]

    @property
    def locked(self) -> list[Tensor]:
        """Per image ``[N]`` bool, rows that are always kept."""
        return [image.locked for image in self.plan.images]

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.report._placed.device
        return device

    @on_host_unless_told
    def kept_in_grids(self, image: int, kept: Tensor | None = None) -> list[Tensor]:
        """For each of an image's grids, the raster indices of the tokens kept in it; locked rows are in none.

        Args:
            image: its number.
            kept: ``[k]``, tokens to show in place of those kept in the prompt.
        """
        flags = torch.zeros(len(self.locked[image]), dtype=torch.bool)
        flags[(self.kept[image] if kept is None else kept).cpu()] = True
        free = flags[~self.locked[image]]
        return [part.nonzero().flatten() for part in torch.split(free, [h * w for h, w in self.grids[image]])]

    def views(self, image: int, size: tuple[int, int], kept: Tensor | None = None) -> list[View]:
        """What to draw (`foveate.draw.kept_views`) of an image of ``size`` (width, height) in any unit.

        The whole image and its tiles joined, or each frame of a video.
        """
        width, height = size
        return self._family.views(
            self.kinds[image], self.grids[image], self.kept_in_grids(image, kept), width / height
        )

    @property
    def rope_deltas(self) -> Tensor:
        """``[B, 1]``: the position after the prompt, less the number of its tokens.

        For steps that continue the cache by hand: the next ``position_ids`` are the number of attended tokens
        plus this. Models with positions of several axes hold it in ``rope_deltas`` of their base model.
        """
        return self._shrunk.rope_deltas

    @property
    def columns(self) -> int:
        """How many columns the prompt had before: what `attach` puts back in front of an answer."""
        return self._shrunk.columns

    @cached_property
    @on_host_unless_told
    def columns_kept(self) -> Tensor:
        """``[B, L']``: for each column, the column of the full prompt that it comes from; -1 in added padding.

        A tensor of one's own with one entry per token is cut by ``own.gather(1, columns_kept.clamp(min=0))``.
        """
        return source_of(self.chosen, self._device).masked_fill(self.plan.added.to(self._device), -1)

    def detached(self) -> "Pruned":
        """The same without the graph that gradients would flow through."""
        return replace(self, _shrunk=self._shrunk.detached())

    def __getitem__(self, key: str) -> Any:
        return self._shrunk[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shrunk)

    def __len__(self) -> int:
        return len(self._shrunk)


def report_of(
    model: "PreTrainedModel",
    family: Family,
    chosen: Chosen,
    encoded: Encoded,
    rows: Tensor,
    method: Method,
    seconds: dict[str, float],
    tagger: str | None,
) -> Report:
    """What was done to a prompt; ``rows [K, D]`` stand in the places kept."""
    plan, depth = chosen.plan, model.config.get_text_config().num_hidden_layers
    return Report(
        tokens_before=list(encoded.counts),
        tokens_after=list(plan.counts),
        prompt_before=plan.attended_before,
        prompt_after=plan.attended_after,
        seconds=seconds,
        tagger=tagger if Signal.QUESTION in method.needs else None,
        method=method,
        tokens_per_layer=[[count] * depth for count in plan.counts],
        resized=family.resizes if isinstance(method, Resizing) else None,
        _features=encoded.features.detach(),
        _placed=rows.detach(),
    )
