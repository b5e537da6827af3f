"""Which tokens of each image stay: images that are alike are ranked together."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor

from foveate.errors import InvalidOption
from foveate.families.layout import Grid
from foveate.flow.encode import Encoded
from foveate.flow.images import Image
from foveate.flow.plan import Plan
from foveate.flow.signals import Text
from foveate.methods import METHODS, Method, Resizing
from foveate.methods.base import with_last
from foveate.select.checks import is_no_selection, refuse_if
from foveate.share import shares
from foveate.text.clip import clip_relevance
from foveate.tokens import Signal, VisualTokens


@dataclass(frozen=True)
class Unit:
    """What is ranked by itself: an image without its locked rows, or one frame of a video.

    Attributes:
        image: its number.
        start: of its tokens among the free ones of all images.
        n: its tokens.
        k: how many of them to keep.
        grids: its grids.
        holds_last: whether its last token must be kept.
    """

    image: int
    start: int
    n: int
    k: int
    grids: tuple[Grid, ...]
    holds_last: bool


Group = Sequence[Unit]  # of equal n, k and grids, ranked together


@dataclass(eq=False)
class Ranking:
    """The orders that one method gave, so that none is ranked twice.

    An order answers for its own count again, and for smaller ones where the method is nested.
    """

    method: Method
    model_type: str
    _orders: dict[tuple[tuple[int, int], ...], tuple[int, Tensor]] = field(default_factory=dict, repr=False)

    def tried(self) -> "Ranking":
        """A copy, to be kept in place of this one once what it ranks is known to be sound."""
        return replace(self, _orders=dict(self._orders))

    def of(
        self, groups: Sequence[Group], encoded: Encoded, images: Sequence[Image], text: Text | None
    ) -> list[Tensor]:
        """`Method.rank` of each group: ``[G, k]``."""
        new = [group for group in groups if self._known(group) is None]
        tokens = tokens_of(new, encoded, images, text, self.method, self.model_type) if new else []
        for group, together in zip(new, tokens, strict=True):
            with torch.no_grad():
                order = self.method.rank(together, group[0].k)
            self._orders[_places(group)] = group[0].k, self._checked(order, group).to(together.features.device)
        return [cast(Tensor, self._known(group)) for group in groups]

    def _known(self, group: Group) -> Tensor | None:
        k = group[0].k
        asked, order = self._orders.get(_places(group), (0, None))
        if order is None or not (asked == k or (self.method.nested and asked > k)):
            return None
        return order[:, :k]

    def _checked(self, order: Tensor, group: Group) -> Tensor:
        """Refuse what a method of one's own may give by mistake; until that is read, indices are in range."""
        n, k, resizes = group[0].n, group[0].k, isinstance(self.method, Resizing)
        fits = isinstance(order, Tensor) and order.dtype == torch.long and order.dim() == 2
        fits = fits and len(order) == len(group) and (order.shape[1] == k or (resizes and 0 < order.shape[1] < k))
        given = f"{order.dtype} {list(order.shape)}" if isinstance(order, Tensor) else type(order).__name__
        error = InvalidOption(
            f"{type(self.method).__name__}.rank gave {given} for k={k} of {n} tokens of {len(group)} images: "
            f"allowed are [G, k] distinct int64 indices from 0 to {n - 1}; one that thinks of one image derives "
            "from foveate.EachImage"
        )
        if not fits:
            raise error
        if type(self.method) in METHODS.values():
            return order
        refuse_if(is_no_selection(order, n), lambda: error)
        return order.clamp(0, n - 1)


def _places(group: Group) -> tuple[tuple[int, int], ...]:
    """Which tokens a group is made of: a video and its first frame begin alike."""
    return tuple((unit.start, unit.n) for unit in group)


@dataclass(frozen=True, eq=False)
class Chosen:
    """The tokens that stay.

    Attributes:
        plan: the plan, its counts those of the tokens chosen.
        order: ``[K]``, numbers among the tokens of all images: image by image, locked rows first, then in order of
            selection. None where all tokens stay.
    """

    plan: Plan
    order: Tensor | None

    @cached_property
    def ascending(self) -> tuple[Tensor, Tensor] | None:
        """``[K]`` the same in prompt order, and ``[K]`` where each is in ``order``."""
        return None if self.order is None else tuple(self.order.sort())  # type: ignore[return-value]

    def of_images(self, kept: Tensor | None, device: torch.device) -> list[Tensor]:
        """Per image ``[k]``, indices among its own tokens, of ``kept [K]``; all where it is None."""
        if kept is None:
            return [torch.arange(image.n, device=device) for image in self.plan.images]
        starts = torch.tensor([image.start for image in self.plan.images])
        offsets = starts.repeat_interleave(torch.tensor(self.plan.counts)).to(device)
        return list(torch.split(kept - offsets, list(self.plan.counts)))


def choose(plan: Plan, encoded: Encoded, text: Text | None, ranking: Ranking) -> Chosen:
    """Which tokens stay.

    Frames that are ranked by themselves follow one another.

    Args:
        plan: says how many of each image, and whether frames are ranked by themselves.
        encoded: the images.
        text: the text signals.
        ranking: of the method.
    """
    if not any(plan.drops):
        return Chosen(plan, None)
    device, free = encoded.features.device, _free_rows(plan.images)
    pieces: list[Tensor] = []
    places: dict[Unit, range] = {}
    size = 0
    groups = groups_of(units_of(plan))
    for group, order in zip(groups, ranking.of(groups, encoded, plan.images, text), strict=True):
        order = with_last(order, group[0].n) if group[0].holds_last else order
        pieces.append(_among_all(order, group, free).flatten())
        for unit in group:
            places[unit] = range(size, size := size + order.shape[1])
    fixed = [_fixed(image, count) for image, count in zip(plan.images, plan.counts, strict=True)]
    found: list[Tensor] = []
    for number, always in enumerate(fixed):
        own = [torch.arange(size, size := size + len(always))]
        own += [torch.tensor(place) for unit, place in places.items() if unit.image == number]
        found.append(torch.cat(own))
    if size > sum(map(len, places.values())):
        pieces.append(torch.cat(fixed).to(device))
    flat, arranged = pieces[0] if len(pieces) == 1 else torch.cat(pieces), torch.cat(found)
    if not torch.equal(arranged, torch.arange(len(arranged))):
        flat = flat[arranged.to(device)]
    counts = [len(own) for own in found]  # a resizing method may give fewer
    return Chosen(plan if counts == list(plan.counts) else replace(plan, counts=counts), flat)


def _fixed(image: Image, count: int) -> Tensor:
    """Tokens that stay without being ranked: all, or the locked ones."""
    return image.start + (torch.arange(image.n) if count == image.n else image.locked.nonzero().flatten())


def _among_all(order: Tensor, units: Group, free: Tensor | None) -> Tensor:
    """``order [G, k]`` of the units, as numbers among the tokens of all images."""
    starts = torch.tensor([unit.start for unit in units])[:, None]
    if free is not None:
        return (free[starts + torch.arange(units[0].n)]).to(order.device).gather(1, order)
    return order if len(units) == 1 and units[0].start == 0 else order + starts.to(order.device)


def units_of(plan: Plan) -> list[Unit]:
    """What is ranked by itself, in order; images of which all or only locked rows are kept are not."""
    found = []
    starts = accumulate((len(image.free) for image in plan.images), initial=0)
    for number, (image, count, start) in enumerate(zip(plan.images, plan.counts, starts, strict=False)):
        k, n = count - int(image.locked.sum()), int((~image.locked).sum())
        if k == 0 or count == image.n:
            continue
        holds = image.holds_last and not bool(image.locked[-1])
        if not (plan.settings.per_frame and image.is_video):
            found.append(Unit(number, start, n, k, image.grids, holds))
            continue
        sizes = [height * width for height, width in image.grids]
        begins = accumulate(sizes, initial=start)
        last = len(sizes) - 1
        least = [int(holds and index == last) for index in range(len(sizes))]
        parts = zip(begins, sizes, shares(k, sizes, least), image.grids, strict=False)
        for index, (begin, size, share, grid) in enumerate(parts):
            if share:
                found.append(Unit(number, begin, size, share, (grid,), holds and index == last))
    return found


def groups_of(units: Sequence[Unit]) -> list[Group]:
    """Units that can be ranked together."""
    groups: dict[object, list[Unit]] = {}
    for unit in units:
        groups.setdefault((unit.n, unit.k, unit.grids, unit.holds_last), []).append(unit)
    return list(groups.values())


def tokens_of(
    groups: Sequence[Group],
    encoded: Encoded,
    images: Sequence[Image],
    text: Text | None,
    method: Method,
    model_type: str,
) -> list[VisualTokens]:
    """Each group's tokens ``[G, N, D]``, with the signals that the method needs and no others."""
    free = _free_rows(images)
    needs_patches = {Signal.PATCHES, Signal.CLIP_RELEVANCE} & method.needs
    patches = _by_group(encoded.patches, groups, free) if needs_patches and encoded.patches is not None else None
    signals = {
        signal.value: _by_group(values, groups, None)
        for signal, values in encoded.signals.items()
        if signal in method.needs
    }
    if patches is not None and Signal.PATCHES in method.needs:
        signals[Signal.PATCHES.value] = patches
    found = []
    for number, features in enumerate(_by_group(encoded.features, groups, free)):
        group, given = groups[number], {name: values[number] for name, values in signals.items()}
        if text is not None:
            own = None if patches is None else patches[number]
            given |= _text_signals(group, images, text, method, own, features.device)
        found.append(VisualTokens(features, group[0].grids, family=model_type, **given))
    return found


def _text_signals(
    units: Group,
    images: Sequence[Image],
    text: Text,
    method: Method,
    patches: Tensor | None,
    device: torch.device,
) -> dict[str, Tensor]:
    which = [text.which[images[unit.image].row] for unit in units]
    found: dict[str, Tensor] = {}
    if Signal.QUESTION in method.needs and text.nouns is not None:
        found["question"] = _of_units(text.nouns, which).to(device)
        found |= {} if text.real is None else {"asked": _of_units(text.real, which).to(device)}
    if Signal.CLIP_RELEVANCE in method.needs and text.clip is not None and patches is not None:
        assert text.directions is not None
        found["clip_relevance"] = clip_relevance(text.clip, patches, _of_units(text.directions, which)).to(device)
    return found


def _of_units(values: Tensor, which: Sequence[int]) -> Tensor:
    """``values[which]``; no copy where it is one value for all."""
    if len(set(which)) == 1:
        return values[which[0]].expand(len(which), *values.shape[1:])
    return values[torch.tensor(which).to(values.device)]


def _free_rows(images: Sequence[Image]) -> Tensor | None:
    """Where the free tokens are among all; None where all are free."""
    if not any(bool(image.locked.any()) for image in images):
        return None
    return torch.cat([image.start + image.free for image in images])


def _by_group(values: Tensor, groups: Sequence[Group], free: Tensor | None) -> list[Tensor]:
    """``[G, N, ...]`` of each group: views of one copy, or of ``values`` where the units lie in that order."""
    places = torch.cat([unit.start + torch.arange(unit.n) for group in groups for unit in group])
    places = places if free is None else free[places]
    if torch.equal(places, torch.arange(len(places)) + places[0]):
        rows = values[int(places[0]) : int(places[0]) + len(places)]
    else:
        rows = values[places.to(values.device)]
    parts = torch.split(rows, [len(group) * group[0].n for group in groups])
    return [part.view(len(group), group[0].n, *rows.shape[1:]) for part, group in zip(parts, groups, strict=True)]
