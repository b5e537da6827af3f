"""LLaVA-NeXT and LLaVA-OneVision: the whole image, then its tiles joined and unpadded, with a newline per row."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.families.base import DOWN_AND_UP, IMAGE, PIXELS, VIDEO, Family, Inputs, base_of
from foveate.families.layout import Layout, blocks, runs, square
from foveate.families.llava import Llava
from foveate.hf import names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LLAVA_NEXT = "models.llava_next.modeling_llava_next"


class LlavaNext(Llava):
    """``llava_next``. Source: transformers 5.18 to 5.24, modeling_llava_next.py, ``pack_image_features``.

    What becomes of a patch is asked of the model's own packing, which is run on marks in place of features.
    """

    name = "LLaVA-NeXT"
    towers = ("clip_vision_model",)
    tokens = "the whole image as a square, then its tiles joined to one grid, unpadded"
    locks = "the newline at the end of each row"
    resizes = DOWN_AND_UP
    told_by: ClassVar[tuple[str, ...]] = ("image_sizes",)

    def layouts(self, model: "PreTrainedModel", prompt: Inputs, kind: str, sizes: Sequence[int]) -> list[Layout]:
        """The square, and the grid of tiles, whose rows end with a newline."""
        n, found = _side(model) ** 2, []
        counts = self._tiles(model, prompt)
        for tiles, marks in zip(counts, self._marks(model, prompt, [n] * sum(counts)), strict=True):
            newline = marks.isnan()
            widths = [stop - start for start, stop in runs((~newline).tolist())]
            grids = [(_side(model), _side(model))]
            if tiles > 1:  # the square runs into the first row
                widths[0] -= n
                grids.append((len(widths), widths[0]))
            found.append(Layout(tuple(grids), newline))
        return found

    def carry(
        self, model: "PreTrainedModel", prompt: Inputs, kind: str, scores: Tensor, lengths: Sequence[int]
    ) -> Tensor:
        """Packed as the features are; by the model itself where it shrinks a very large image."""
        marks = self._marks(model, prompt, lengths)
        places = torch.cat(marks)
        places = places[~places.isnan()]
        if bool((places == places.long()).all()):
            return scores[places.long().to(scores.device)]
        first = int(self.has_cls(model))
        tiles = torch.split(scores.view(len(lengths), lengths[0], -1)[:, first:], self._tiles(model, prompt))
        alike: dict[object, list[int]] = {}
        for number, size in enumerate(prompt["image_sizes"].tolist()):
            alike.setdefault((*size, len(tiles[number])), []).append(number)
        found: dict[int, Tensor] = {}
        for numbers in alike.values():  # images of one size are channels of one
            together = torch.stack([tiles[number] for number in numbers], dim=-1)
            one = {**prompt, "image_sizes": prompt["image_sizes"][numbers[:1]]}
            (packed,) = self._pack(model, one, [together.flatten(2)])
            free = (~marks[numbers[0]].isnan()).nonzero().flatten().to(scores.device)
            found |= zip(numbers, packed[free].view(len(free), -1, len(numbers)).unbind(-1), strict=True)
        return torch.cat([found[number] for number in range(len(found))]).reshape(-1, *scores.shape[1:])

    def projector(self, model: "PreTrainedModel") -> nn.Module | None:
        """None: it sees tiles that are cut and joined only later."""
        return None

    def pictures(self, model: "PreTrainedModel", prompt: Inputs, kind: str) -> list[Tensor]:
        """The whole image, and its tiles as they lie, margins included."""
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
        self, model: "PreTrainedModel", prompt: Inputs, kind: str, pictures: Sequence[Tensor]
    ) -> Inputs:
        """Each image and its tiles, cut apart again."""
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

    def _tiles_of(self, model: "PreTrainedModel", prompt: Inputs) -> list[Tensor]:
        """``[tiles, C, H, W]`` of each image, without what fills up a batch."""
        counts, pixels = self._tiles(model, prompt), prompt["pixel_values"]
        if pixels.dim() == 5:  # else one after another already
            pixels = torch.cat([image[:count] for image, count in zip(pixels, counts, strict=True)])
        return list(torch.split(pixels, counts))

    def _tilings(self, model: "PreTrainedModel", prompt: Inputs) -> list[tuple[int, int]]:
        """``(rows, columns)`` of each image's tiles."""
        pinpoints, side = model.config.image_grid_pinpoints, model.config.vision_config.image_size
        shape_of = names.imported(LLAVA_NEXT, "get_anyres_image_grid_shape")
        return [shape_of(size, pinpoints, side) for size in prompt["image_sizes"].tolist()]

    def _tiles(self, model: "PreTrainedModel", prompt: Inputs) -> list[int]:
        pinpoints, side = model.config.image_grid_pinpoints, model.config.vision_config.image_size
        count_of = names.imported(LLAVA_NEXT, "image_size_to_num_patches")
        return [int(count_of(size, pinpoints, side)) for size in prompt["image_sizes"].tolist()]

    def _marks(self, model: "PreTrainedModel", prompt: Inputs, lengths: Sequence[int]) -> list[Tensor]:
        """Per image ``[N]``: the position of each token's patch in the tower's sequences, NaN at newlines."""
        first = int(self.has_cls(model)) if len(set(lengths)) == 1 and lengths[0] > _side(model) ** 2 else 0
        places = torch.arange(sum(lengths), dtype=torch.float64).view(len(lengths), -1)[:, first:, None]
        return [
            image[:, 0]
            for image in self._pack(model, prompt, list(torch.split(places, self._tiles(model, prompt))))
        ]

    def _pack(self, model: "PreTrainedModel", prompt: Inputs, patches: list[Tensor]) -> list[Tensor]:
        """``[N, C]`` per image of ``patches [tiles, n, C]``, NaN at newlines."""
        packed, _ = names.at(base_of(model), "pack_image_features")(
            patches,
            prompt["image_sizes"],
            **self._packing(model, prompt),
            image_newline=patches[0].new_full(patches[0].shape[2:], float("nan")),
        )
        return list(packed)

    def _packing(self, model: "PreTrainedModel", prompt: Inputs) -> dict[str, Any]:
        return {"vision_feature_select_strategy": model.config.vision_feature_select_strategy}


class LlavaNextVideo(LlavaNext):
    """``llava_next_video``: images as LLaVA-NeXT; a video's frames are pooled.

    Source: transformers 5.18 to 5.24, modeling_llava_next_video.py.
    """

    name = "LLaVA-NeXT-Video"
    kinds = (IMAGE, VIDEO)
    tokens = "images as LLaVA-NeXT; videos: a square of pooled patches per frame"

    def layouts(self, model: "PreTrainedModel", prompt: Inputs, kind: str, sizes: Sequence[int]) -> list[Layout]:
        """Of a video, a square per frame."""
        if kind == IMAGE:
            return super().layouts(model, prompt, kind, sizes)
        frames = prompt["pixel_values_videos"].shape[1]
        return [Layout.of(*[square(n // frames)] * frames) for n in sizes]

    def carry(
        self, model: "PreTrainedModel", prompt: Inputs, kind: str, scores: Tensor, lengths: Sequence[int]
    ) -> Tensor:
        """Of a video, pooled frame by frame."""
        carry = LlavaNext.carry if kind == IMAGE else Family.carry
        return carry(self, model, prompt, kind, scores, lengths)

    def patches_of_tokens(
        self, model: "PreTrainedModel", prompt: Inputs, kind: str, lengths: Sequence[int]
    ) -> Tensor | None:
        """Squares of each frame's patches."""
        side, first = _side(model), int(self.has_cls(model))
        small = side // model.config.spatial_pool_stride
        n = side * side + first
        frames = range(len(lengths))
        return torch.cat([blocks((side, side), (small, small), frame * n + first) for frame in frames])


class LlavaOnevision(LlavaNext):
    """``llava_onevision``. Source: transformers 5.18 to 5.24, modeling_llava_onevision.py."""

    name = "LLaVA-OneVision"
    towers = ("siglip_vision_model",)
    kinds = (IMAGE, VIDEO)
    tokens = "images as LLaVA-NeXT, very large ones shrunk; videos: a square of pooled patches per frame"
    locks = "the newline at the end of each row; one at the end of a video"
    told_by: ClassVar[tuple[str, ...]] = ("image_sizes", "batch_num_images")

    def layouts(self, model: "PreTrainedModel", prompt: Inputs, kind: str, sizes: Sequence[int]) -> list[Layout]:
        """Of a video, a square per frame, and a newline at the end."""
        if kind == IMAGE:
            return super().layouts(model, prompt, kind, sizes)
        frames = prompt["pixel_values_videos"].shape[1]
        ends = [torch.arange(n) == n - 1 for n in sizes]
        return [Layout((square((n - 1) // frames),) * frames, end) for n, end in zip(sizes, ends, strict=True)]

    def carry(
        self, model: "PreTrainedModel", prompt: Inputs, kind: str, scores: Tensor, lengths: Sequence[int]
    ) -> Tensor:
        """Of a video, pooled by the model itself."""
        if kind == IMAGE:
            return super().carry(model, prompt, kind, scores, lengths)
        frames = scores.reshape(len(lengths), lengths[0], -1)
        pooled: Tensor = names.at(base_of(model), "apply_pooling")(frames)
        return pooled.reshape(-1, *scores.shape[1:])

    def _tiles(self, model: "PreTrainedModel", prompt: Inputs) -> list[int]:
        counts = super()._tiles(model, prompt)
        per_row = prompt.get("batch_num_images")
        if per_row is None:
            return counts
        alone = [int(images) == 1 for images in per_row for _ in range(int(images))]
        return [count if single else 1 for count, single in zip(counts, alone, strict=True)]

    def _packing(self, model: "PreTrainedModel", prompt: Inputs) -> dict[str, Any]:
        return {"vision_aspect_ratio": prompt.get("vision_aspect_ratio") or model.config.vision_aspect_ratio}


def _side(model: "PreTrainedModel") -> int:
    """Patches along a tile's side."""
    side: int = model.config.vision_config.image_size // model.config.vision_config.patch_size
    return side
