"""Encode images made smaller: as they are where the vision tower takes any size, else resized up again.

The family says how its pixels are pictures (`Family.pictures`), one per grid of tokens, and what the tower takes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from foveate.encode import Encoded, entries_of, finite, run_encoder
from foveate.families import AS_IT_IS, Family
from foveate.hf import names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Grid = tuple[int, int]


class Standing(NamedTuple):
    """What the encoder gives for some places.

    Attributes:
        features: ``[n, D]``.
        deepstack: per layer ``[n, D]``; empty for models without.
    """

    features: Tensor
    deepstack: list[Tensor]

    def at(self, places: Tensor) -> "Standing":
        """Some of them, or all in another order."""
        return Standing(self.features[places], [layer[places] for layer in self.deepstack])

    def with_last(self, others: "Standing") -> "Standing":
        """The same with ``others`` in the place of the last ones."""
        first = len(self.features) - len(others.features)
        layers = zip(self.deepstack, others.deepstack, strict=True)
        return Standing(
            torch.cat([self.features[:first], others.features]),
            [torch.cat([own[:first], other]) for own, other in layers],
        )


def encode_resized(
    model: "PreTrainedModel",
    family: Family,
    inputs: dict[str, Any],
    encoded: Encoded,
    sizes: Sequence[Sequence[Grid | None]],
    orders: Sequence[Tensor],
) -> dict[int, Standing]:
    """By image, for those with any size: what the encoder gives for it made smaller, in the order of its places.

    A CLS row is that of the smaller image; of `AS_IT_IS` families other locked rows are not among it. Layer and
    projector are those of `encode`. Gradients flow where the caller has them on.

    Args:
        model: the model.
        family: its family.
        inputs: the prompt with the images.
        encoded: the same images in full size.
        sizes: per image, per grid, ``(height, width)`` in tokens; None for a grid that is left out.
        orders: per image ``[k]``, the places: locked rows, then those of each grid.

    Raises:
        InvalidFeatures: the encoder gave NaN or infinite values.
    """
    found: dict[int, Standing] = {}
    for kind in dict.fromkeys(encoded.kinds):
        which = [index for index, own in enumerate(encoded.kinds) if own == kind]
        asked = [size for index in which for size in sizes[index]]
        if not any(asked):
            continue
        grids = [grid for index in which for grid in encoded.images[index].grids]
        pictures = family.pictures(model, inputs, kind)
        small = [_smaller(*each) for each in zip(pictures, grids, asked, strict=True)]
        run = partial(_run, model, family, inputs, kind)
        if family.resizes == AS_IT_IS:
            owners = (index for index in which for _ in sizes[index])
            drawn = zip(owners, small, asked, strict=True)
            found |= _as_they_are(run, [(index, picture) for index, picture, size in drawn if size])
        else:
            whole = _joined(run([_resized(a, b.shape[-2:]) for a, b in zip(small, pictures, strict=True)]))
            starts = accumulate((len(encoded.images[index].features) for index in which), initial=0)
            for index, start in zip(which, starts, strict=False):
                found |= {index: whole.at(start + orders[index])} if any(sizes[index]) else {}
    for index, standing in found.items():
        finite(standing.features, index)
    return found


def _smaller(picture: Tensor, grid: Grid, size: Grid | None) -> Tensor:
    """To the pixels that ``size`` of the ``grid``'s tokens are made of."""
    if size is None:
        return picture
    edges = zip(picture.shape[-2:], size, grid, strict=True)
    return _resized(picture, [max(1, edge * part // of) for edge, part, of in edges])


def _resized(picture: Tensor, size: Sequence[int]) -> Tensor:
    if list(picture.shape[-2:]) == list(size):
        return picture
    wide = picture[None].float()  # half precision has no antialiased kernel on every device
    return interpolate(wide, size=tuple(size), mode="bicubic", antialias=True)[0].to(picture.dtype)


def _as_they_are(
    run: Callable[[list[Tensor]], list[Standing]], pictures: list[tuple[int, Tensor]]
) -> dict[int, Standing]:
    """By image, given pairs of an image's index and a picture; those of one size are encoded together."""
    given: dict[int, Standing] = {}
    for shape in dict.fromkeys(picture.shape for _, picture in pictures):
        alike = [number for number, (_, picture) in enumerate(pictures) if picture.shape == shape]
        given |= zip(alike, run([pictures[number][1] for number in alike]), strict=False)
    numbers: dict[int, list[int]] = {}
    for number, (index, _) in enumerate(pictures):
        numbers.setdefault(index, []).append(number)
    return {index: _joined([given[number] for number in own]) for index, own in numbers.items()}


def _run(
    model: "PreTrainedModel", family: Family, inputs: dict[str, Any], kind: str, pictures: list[Tensor]
) -> list[Standing]:
    """One per entry that the encoder returns."""
    output = run_encoder(model, family, inputs, kind, **family.with_pictures(model, inputs, kind, pictures))
    layers = [entries_of(layer) for layer in names.deepstack(model, output)]
    entries = entries_of(names.features(output))
    return [Standing(features, [layer[number] for layer in layers]) for number, features in enumerate(entries)]


def _joined(parts: Sequence[Standing]) -> Standing:
    layers = zip(*(part.deepstack for part in parts), strict=True)
    return Standing(torch.cat([part.features for part in parts]), [torch.cat(layer) for layer in layers])
