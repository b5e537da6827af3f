"""Where the visual tokens of a prompt are: rows, columns, grids, locked rows. Known once their number is."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveate.errors import InvalidInputs
from foveate.families import VIDEO, Family
from foveate.families.layout import Grid
from foveate.flow.prompt import Prompt, placeholder_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class Image:
    """One image with all its tiles, or one video with all its frames.

    Attributes:
        row: of the batch.
        kind: ``image`` or ``video``.
        start: of its tokens among those of all images.
        columns: ``[N]``, ascending, of its tokens in the prompt.
        grids: ``(height, width)`` of each tile or frame, in tokens.
        locked: ``[N]`` bool, tokens that are always kept.
        holds_last: whether the prompt ends with its last token. That token writes the first answer token, so it
            is kept.
    """

    row: int
    kind: str
    start: int
    columns: Tensor
    grids: tuple[Grid, ...]
    locked: Tensor
    holds_last: bool

    @cached_property
    def n(self) -> int:
        """Its tokens."""
        return len(self.columns)

    @cached_property
    def free(self) -> Tensor:
        """``[F]``, ascending indices of the tokens that are not locked."""
        return (~self.locked).nonzero().flatten()

    @cached_property
    def least(self) -> int:
        """How many are always kept."""
        return int(self.locked.sum()) + int(self.holds_last and not bool(self.locked[-1]))

    @property
    def is_video(self) -> bool:
        """Whether its grids are frames."""
        return self.kind == VIDEO


def images_of(
    model: "PreTrainedModel", family: Family, prompt: Prompt, counts: Sequence[int], kinds: Sequence[str]
) -> list[Image]:
    """The images of a prompt, then its videos.

    Args:
        model: unwrapped.
        family: the model's.
        prompt: the prompt.
        counts: tokens that the encoder gave for each.
        kinds: of each.

    Raises:
        InvalidInputs: the placeholders in the prompts and the images do not match.
    """
    starts = list(accumulate(counts, initial=0))
    last = _last_columns(prompt.attended)
    found: list[Image] = []
    for kind in dict.fromkeys(kinds):
        sizes = [count for count, of in zip(counts, kinds, strict=True) if of == kind]
        token = placeholder_id(model, kind)
        marks = torch.eq(prompt.ids, -1 if token is None else token).nonzero()
        _check_marks(prompt, model, kind, marks, sizes)
        layouts = family.layouts(model, prompt.known, kind, sizes)
        for places, layout in zip(torch.split(marks, sizes), layouts, strict=True):
            row = int(places[0, 0])
            start, ends = starts[len(found)], int(places[-1, 1]) == last[row]
            found.append(Image(row, kind, start, places[:, 1], layout.grids, layout.locked, ends))
    return found


def _last_columns(attended: Tensor) -> list[int]:
    """The last attended column of each row; the last one of a row of padding alone."""
    last: list[int] = (attended.shape[1] - 1 - attended.flip(1).int().argmax(dim=1)).tolist()
    return last


def _check_marks(prompt: Prompt, model: "PreTrainedModel", kind: str, marks: Tensor, sizes: Sequence[int]) -> None:
    """Refuse placeholders that do not match: in row-major order they are the images' tokens, one by one."""
    rows = marks[:, 0]
    fits = len(marks) == sum(sizes) and all(sizes)
    if fits:
        edges = torch.tensor(list(accumulate(sizes, initial=0)))
        fits = bool((rows[edges[:-1]] == rows[edges[1:] - 1]).all())
    if not fits:
        counts = torch.bincount(rows, minlength=len(prompt.ids)).tolist()
        raise InvalidInputs(
            f"the prompts hold {counts} {kind} placeholders per row, the {kind}s given have {sum(sizes)} tokens "
            f"({list(sizes)}): every <{kind}> mark needs one {kind}, in order"
        )
