"""InternVL, Idefics3 and SmolVLM: an image is cut into square tiles, which the prompt alone tells apart."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveate.families.base import Family, Inputs
from foveate.families.layout import Grid, Layout, View, blocks, joined, runs, square, tiling

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class InternVL(Family):
    """``internvl``: the tiles of an image follow one another. Source: transformers 5.18 to 5.24."""

    name = "InternVL"
    towers = ("internvl_vision",)
    tokens = "square tiles, one after the other; the prompt does not tell how they lie"

    def counts(self, model: "PreTrainedModel", prompt: Inputs, kind: str, entries: Sequence[int]) -> list[int]:
        """An unbroken run of placeholders is an image."""
        return [size for row in placeholder_runs(model, prompt) for _, size in row]

    def layouts(self, model: "PreTrainedModel", prompt: Inputs, kind: str, sizes: Sequence[int]) -> list[Layout]:
        """As many squares as there are tiles."""
        side = self._side(model)
        return [Layout.of(*[(side, side)] * (n // side**2)) for n in sizes]

    def views(self, kind: str, grids: Sequence[Grid], kept: Sequence[Tensor], aspect: float) -> list[View]:
        """The last tile is the whole image, the others lie as the image's shape says."""
        whole = View("image", grids[-1], kept[-1])
        if len(grids) == 1:
            return [whole]
        tiles = joined(grids[:-1], kept[:-1], tiling(len(grids) - 1, aspect))
        return [whole, View("tiles", *tiles)]

    def tower_layer(self, model: "PreTrainedModel") -> int | None:
        """The one that the configuration names."""
        return int(model.config.vision_feature_layer)

    def has_cls(self, model: "PreTrainedModel") -> bool:
        """It has one."""
        return True

    def patches_of_tokens(
        self, model: "PreTrainedModel", prompt: Inputs, kind: str, lengths: Sequence[int]
    ) -> Tensor | None:
        """Squares of each tile's patches."""
        side, first, n = self._side(model), int(self.has_cls(model)), lengths[0]
        return torch.cat(
            [blocks(square(n - first), (side, side), tile * n + first) for tile in range(len(lengths))]
        )

    def _side(self, model: "PreTrainedModel") -> int:
        vision = model.config.vision_config
        size, patch = (
            value if isinstance(value, int) else value[0] for value in (vision.image_size, vision.patch_size)
        )
        return int(size // patch * model.config.downsample_ratio)


class Idefics3(InternVL):
    """``idefics3`` and ``smolvlm``: marks stand between the tiles of an image, the whole image comes last."""

    name = "Idefics3"
    towers = ("idefics3_vision",)
    tokens = "square tiles, then the whole image as one"

    def counts(self, model: "PreTrainedModel", prompt: Inputs, kind: str, entries: Sequence[int]) -> list[int]:
        """An image ends with a run marked like the row's last one, the whole image."""
        sizes: list[int] = []
        for row, found in zip(prompt["input_ids"].tolist(), placeholder_runs(model, prompt), strict=True):
            whole = row[found[-1][0] - 1] if found else None
            open_tiles = 0
            for start, size in found:
                open_tiles += size
                if row[start - 1] == whole:
                    sizes.append(open_tiles)
                    open_tiles = 0
        return sizes

    def tower_layer(self, model: "PreTrainedModel") -> int | None:
        """The last one."""
        return -1

    def has_cls(self, model: "PreTrainedModel") -> bool:
        """It has none."""
        return False

    def pictures(self, model: "PreTrainedModel", prompt: Inputs, kind: str) -> list[Tensor]:
        """The tiles, without those that fill up a batch."""
        return list(prompt["pixel_values"][_real(prompt)])

    def with_pictures(
        self, model: "PreTrainedModel", prompt: Inputs, kind: str, pictures: Sequence[Tensor]
    ) -> Inputs:
        """The tiles, with those that fill up a batch."""
        pixels = prompt["pixel_values"].clone()
        pixels[_real(prompt)] = torch.stack(list(pictures))
        return {"pixel_values": pixels}

    def _side(self, model: "PreTrainedModel") -> int:
        vision = model.config.vision_config
        return int(vision.image_size // vision.patch_size // model.config.scale_factor)


class SmolVLM(Idefics3):
    """``smolvlm``. Source: transformers 5.21.1 to 5.23; those before check counts that pruning changes."""

    name = "SmolVLM"
    towers = ("smolvlm_vision",)
    since = "5.21.1"


def _real(prompt: Inputs) -> Tensor:
    """``[rows, tiles]`` bool: tiles that do not fill up a batch; by zeros, as the models tell them apart."""
    real: Tensor = (prompt["pixel_values"] != 0).flatten(2).any(dim=2)
    return real


def placeholder_runs(model: "PreTrainedModel", prompt: Inputs) -> list[list[tuple[int, int]]]:
    """Per row, ``(start, size)`` of each unbroken run of image placeholders."""
    flags = prompt["input_ids"] == model.config.image_token_id
    return [[(start, stop - start) for start, stop in runs(row)] for row in flags.tolist()]
