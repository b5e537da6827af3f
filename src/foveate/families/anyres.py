"""LLaVA-NeXT and LLaVA-OneVision: the whole image, then its tiles joined and unpadded, with a newline per row."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveate.families.base import DOWN_AND_UP, IMAGE, PIXELS, VIDEO, Prompt, base_of
from foveate.families.layout import Layout, runs, square
from foveate.families.llava import Llava
from foveate.families.pooling import pooled
from foveate.hf import names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LLAVA_NEXT = "models.llava_next.modeling_llava_next"


class LlavaNext(Llava):
    """``llava_next``. Source: transformers 5.18 to 5.23, modeling_llava_next.py, ``pack_image_features``.

    What becomes of a patch is asked of the model's own packing, which is run on marks in place of features.
    """

    name = "LLaVA-NeXT"
    towers = ("clip_vision_model",)
    tokens = "the whole image as a square, then its tiles joined to one grid, unpadded"
    locks = "the newline at the end of each row"
    resizes = DOWN_AND_UP

    def layout(self, model: "PreTrainedModel", prompt: Prompt, kind: str, index: int, n: int) -> Layout:
        """See `Family.layout`."""
        tiles = self._tiles(model, prompt)[index]
        n_patches = _side(model) ** 2
        marks = self._pack(model, prompt, [torch.zeros(tiles, n_patches, 1)], [index])[0][:, 0]
        newline = marks.isnan()
        widths = [stop - start for start, stop in runs((~newline).tolist())]
        grids = [(_side(model), _side(model))]
        if tiles > 1:  # the square runs into the first row
            widths[0] -= n_patches
            grids.append((len(widths), widths[0]))
        return Layout(tuple(grids), newline)

    def carry(self, model: "PreTrainedModel", prompt: Prompt, kind: str, scores: list[Tensor]) -> list[Tensor]:
        """See `Family.carry`: packed as the features are."""
        first = int(self.has_cls(model))
        tiles = self._tiles(model, prompt)
        shape = scores[0].shape[1:]
        patches = torch.split(torch.stack([tile[first:].reshape(len(tile) - first, -1) for tile in scores]), tiles)
        marks = self._pack(model, prompt, list(patches), list(range(len(tiles))))
        return [image[~image[:, 0].isnan()].reshape(-1, *shape) for image in marks]

    def projector(self, model: "PreTrainedModel") -> nn.Module | None:
        """See `Family.projector`: it sees tiles that are cut and joined only later."""
        return None

    def pictures(self, model: "PreTrainedModel", prompt: Prompt, kind: str) -> list[Tensor]:
        """See `Family.pictures`: the whole image, and its tiles as they lie, margins included."""
        if kind == VIDEO:
            return super().pictures(model, prompt, kind)
        found = []
        for tiles, (_, columns) in zip(self._tiles_of(model, prompt), self._tilings(model, prompt), strict=True):
            found.append(tiles[0])
            if len(tiles) > 1:
                lines = torch.split(tiles[1:], columns)
                found.append(torch.cat([torch.cat(list(line), dim=-1) for line in lines], dim=-2))
        return found

    def with_pictures(
        self, model: "PreTrainedModel", prompt: Prompt, kind: str, pictures: Sequence[Tensor]
    ) -> Prompt:
        """See `Family.with_pictures`."""
        if kind == VIDEO:
            return {PIXELS[kind]: torch.stack(list(pictures)).reshape_as(prompt[PIXELS[kind]])}
        left = iter(pictures)
        tiles = []
        for number, (rows, columns) in zip(self._tiles(model, prompt), self._tilings(model, prompt), strict=True):
            tiles.append(next(left))
            if number > 1:
                lines = next(left).chunk(rows, dim=-2)
                tiles += [tile for line in lines for tile in line.chunk(columns, dim=-1)]
        return {"pixel_values": torch.stack(tiles)}

    def _tiles_of(self, model: "PreTrainedModel", prompt: Prompt) -> list[Tensor]:
        """``[tiles, C, H, W]`` of each image, without what fills up a batch."""
        counts, pixels = self._tiles(model, prompt), prompt["pixel_values"]
        if pixels.dim() == 5:  # else one after another already
            pixels = torch.cat([image[:count] for image, count in zip(pixels, counts, strict=True)])
        return list(torch.split(pixels, counts))

    def _tilings(self, model: "PreTrainedModel", prompt: Prompt) -> list[tuple[int, int]]:
        """``(rows, columns)`` of each image's tiles."""
        pinpoints, side = model.config.image_grid_pinpoints, model.config.vision_config.image_size
        shape_of = names.imported(LLAVA_NEXT, "get_anyres_image_grid_shape")
        return [shape_of(size, pinpoints, side) for size in prompt["image_sizes"]]

    def _tiles(self, model: "PreTrainedModel", prompt: Prompt) -> list[int]:
        pinpoints, side = model.config.image_grid_pinpoints, model.config.vision_config.image_size
        count_of = names.imported(LLAVA_NEXT, "image_size_to_num_patches")
        return [int(count_of(size, pinpoints, side)) for size in prompt["image_sizes"]]

    def _pack(
        self, model: "PreTrainedModel", prompt: Prompt, patches: list[Tensor], which: list[int]
    ) -> list[Tensor]:
        """``[N, C]`` per image of ``patches [tiles, n, C]``, NaN at newlines."""
        packed, _ = names.at(base_of(model), "pack_image_features")(
            patches,
            prompt["image_sizes"][which],
            **self._packing(model, prompt),
            image_newline=patches[0].new_full(patches[0].shape[2:], float("nan")),
        )
        return list(packed)

    def _packing(self, model: "PreTrainedModel", prompt: Prompt) -> dict[str, Any]:
        return {"vision_feature_select_strategy": model.config.vision_feature_select_strategy}


class LlavaNextVideo(LlavaNext):
    """``llava_next_video``: images as LLaVA-NeXT; a video's frames are pooled.

    Source: transformers 5.18 to 5.23, modeling_llava_next_video.py.
    """

    name = "LLaVA-NeXT-Video"
    kinds = (IMAGE, VIDEO)
    tokens = "images as LLaVA-NeXT; videos: a square of pooled patches per frame"

    def layout(self, model: "PreTrainedModel", prompt: Prompt, kind: str, index: int, n: int) -> Layout:
        """See `Family.layout`."""
        if kind == IMAGE:
            return super().layout(model, prompt, kind, index, n)
        frames = prompt["pixel_values_videos"].shape[1]
        return Layout.of(*[square(n // frames)] * frames)

    def carry(self, model: "PreTrainedModel", prompt: Prompt, kind: str, scores: list[Tensor]) -> list[Tensor]:
        """See `Family.carry`: frames through the model's own resampling."""
        if kind == IMAGE:
            return super().carry(model, prompt, kind, scores)
        first = int(self.has_cls(model))
        videos = len(prompt["pixel_values_videos"])
        side = _side(model)
        small = side // model.config.spatial_pool_stride
        frames = [pooled(frame[first:], (side, side), (small, small)) for frame in scores]
        return list(torch.stack(frames).reshape(videos, -1, *frames[0].shape[1:]))


class LlavaOnevision(LlavaNext):
    """``llava_onevision``. Source: transformers 5.18 to 5.23, modeling_llava_onevision.py."""

    name = "LLaVA-OneVision"
    towers = ("siglip_vision_model",)
    kinds = (IMAGE, VIDEO)
    tokens = "images as LLaVA-NeXT, very large ones shrunk; videos: a square of pooled patches per frame"
    locks = "the newline at the end of each row; one at the end of a video"

    def layout(self, model: "PreTrainedModel", prompt: Prompt, kind: str, index: int, n: int) -> Layout:
        """See `Family.layout`."""
        if kind == IMAGE:
            return super().layout(model, prompt, kind, index, n)
        frames = prompt["pixel_values_videos"].shape[1]
        locked = torch.zeros(n, dtype=torch.bool)
        locked[-1] = True
        return Layout((square((n - 1) // frames),) * frames, locked)

    def carry(self, model: "PreTrainedModel", prompt: Prompt, kind: str, scores: list[Tensor]) -> list[Tensor]:
        """See `Family.carry`."""
        if kind == IMAGE:
            return super().carry(model, prompt, kind, scores)
        videos = prompt["pixel_values_videos"].shape[0]
        shape = scores[0].shape[1:]
        small = names.at(base_of(model), "apply_pooling")(
            torch.stack([frame.reshape(len(frame), -1) for frame in scores])
        )
        return list(small.reshape(videos, -1, *shape))

    def _tiles(self, model: "PreTrainedModel", prompt: Prompt) -> list[int]:
        counts = super()._tiles(model, prompt)
        per_row = prompt.get("batch_num_images")
        if per_row is None:
            return counts
        alone = [int(images) == 1 for images in per_row for _ in range(int(images))]
        return [count if single else 1 for count, single in zip(counts, alone, strict=True)]

    def _packing(self, model: "PreTrainedModel", prompt: Prompt) -> dict[str, Any]:
        return {"vision_aspect_ratio": prompt.get("vision_aspect_ratio") or model.config.vision_aspect_ratio}


def _side(model: "PreTrainedModel") -> int:
    """Patches along a tile's side."""
    side: int = model.config.vision_config.image_size // model.config.vision_config.patch_size
    return side
