"""What stands in the places kept: the tokens themselves, merged ones, or those of a smaller image.

Methods that merge or resize are asked image by image.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveate.errors import InvalidFeatures
from foveate.families import Family
from foveate.flow.choose import Chosen, Unit, tokens_of, units_of
from foveate.flow.encode import Encoded
from foveate.flow.images import Image
from foveate.flow.resize import Grid, Standing, encode_resized, joined
from foveate.flow.signals import Text
from foveate.methods import Merging, Method, Resizing
from foveate.select.checks import refuse_if
from foveate.tokens import VisualTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def standing(
    model: "PreTrainedModel", family: Family, encoded: Encoded, text: Text | None, method: Method, chosen: Chosen
) -> tuple[Tensor, list[Tensor]]:
    """``[K, D]``, what stands at the tokens kept, in prompt order, and per layer of deepstack the same.

    Where all tokens of an image are kept, or only locked ones, they are their own. Gradients flow.

    Raises:
        InvalidFeatures: a method of one's own merged to another shape, or the encoder gave NaN or infinite values
            for a smaller image.
    """
    if chosen.ascending is None:
        return encoded.features, encoded.deepstack
    kept, places = chosen.ascending
    if isinstance(method, Merging):
        merged = _merged(model, family, encoded, text, method, chosen)
        return merged[places], [layer[kept] for layer in encoded.deepstack]
    if isinstance(method, Resizing):
        smaller = _smaller(model, family, encoded, method, chosen).at(places)
        return smaller.features, smaller.deepstack
    return encoded.features[kept], [layer[kept] for layer in encoded.deepstack]


def _merged(
    model: "PreTrainedModel", family: Family, encoded: Encoded, text: Text | None, method: Merging, chosen: Chosen
) -> Tensor:
    """``[K, D]`` in order of selection: locked rows themselves, then what the method makes of the others."""
    plan, parts = chosen.plan, []
    assert chosen.order is not None
    units = units_of(plan)
    for number, (image, order) in enumerate(
        zip(plan.images, torch.split(chosen.order, list(plan.counts)), strict=True)
    ):
        own = [unit for unit in units if unit.image == number]
        if not own:
            parts.append(encoded.features[order])
            continue
        parts.append(encoded.features[order[: int(image.locked.sum())]])
        for unit in own:
            (tokens,) = tokens_of([[unit]], encoded, plan.images, text, method, model.config.model_type)
            parts.append(_projected(model, family, method, _checked(method, tokens.each()[0], unit)))
    return torch.cat(parts)


def _checked(method: Merging, tokens: VisualTokens, unit: Unit) -> Tensor:
    """``[k, D]``, what the method makes of a unit's tokens."""
    merged = method.merge(tokens, unit.k)
    error = InvalidFeatures(
        f"{type(method).__name__}.merge gave {list(merged.shape)}: allowed are {unit.k} rows of finite numbers"
    )
    if merged.dim() != 2 or len(merged) != unit.k:
        raise error
    refuse_if(~torch.isfinite(merged.detach()), lambda: error)
    return merged


def _projected(model: "PreTrainedModel", family: Family, method: Merging, merged: Tensor) -> Tensor:
    projector = family.projector(model) if method.unprojected else None
    if projector is None:
        return merged
    projected: Tensor = projector(merged[None])[0]
    return projected


def _smaller(
    model: "PreTrainedModel", family: Family, encoded: Encoded, method: Resizing, chosen: Chosen
) -> Standing:
    """In order of selection: what the encoder gives for the images made smaller."""
    assert chosen.order is not None
    plan = chosen.plan
    orders = chosen.of_images(chosen.order, encoded.features.device)
    placed = [
        Standing(encoded.features[part], [layer[part] for layer in encoded.deepstack])
        for part in torch.split(chosen.order, list(plan.counts))
    ]
    sizes = [_sizes(method, image, order.cpu()) for image, order in zip(plan.images, orders, strict=True)]
    for index, small in encode_resized(model, family, plan.prompt, plan.images, sizes, orders).items():
        placed[index] = placed[index].with_last(small)
    return joined(placed)


def _sizes(method: Resizing, image: Image, order: Tensor) -> list[Grid | None]:
    """Of each grid, the size to make it smaller to; None where it has no token, or is kept with all others."""
    kept = torch.zeros_like(image.locked).index_fill(0, order, True)
    if bool(kept.all()):
        return [None] * len(image.grids)
    areas = [height * width for height, width in image.grids]
    counts = [int(part.sum()) for part in torch.split(kept[~image.locked], areas)]
    return [method.size(grid, count) if count else None for grid, count in zip(image.grids, counts, strict=True)]
