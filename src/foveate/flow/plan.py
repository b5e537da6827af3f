"""What is known before a single token is ranked: how many stay of each image, and the shape of the prompt then."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from foveate.flow.images import Image
from foveate.flow.prompt import Prompt
from foveate.settings import Settings


@dataclass(frozen=True, eq=False)
class Plan:
    """A prompt and its budget, all on the host.

    Attributes:
        prompt: the prompt.
        images: its images, then its videos.
        counts: tokens to keep of each.
        settings: budget, positions, frames.
        guard: whether one masked column stands in front. Without mask and cache, transformers takes gaps between
            positions for the seams of packed sequences; a masked column keeps it from that.
    """

    prompt: Prompt
    images: Sequence[Image]
    counts: Sequence[int]
    settings: Settings
    guard: bool = False

    @classmethod
    def of(cls, prompt: Prompt, images: Sequence[Image], settings: Settings, guard: bool = False) -> "Plan":
        """The plan for a budget.

        Raises:
            InvalidBudget: fewer than are always kept: locked rows, and the last token of the prompt.
        """
        rows, least = [image.row for image in images], [image.least for image in images]
        counts = settings.budget.counts_by_row(rows, [image.n for image in images], least)
        return cls(prompt, images, counts, settings, guard)

    @property
    def rows(self) -> list[int]:
        """The batch row of each image."""
        return [image.row for image in self.images]

    @cached_property
    def drops(self) -> list[int]:
        """Tokens that each row of the batch loses."""
        lost = [0] * len(self.prompt.ids)
        for image, count in zip(self.images, self.counts, strict=True):
            lost[image.row] += image.n - count
        return lost

    @cached_property
    def lead(self) -> list[int]:
        """Columns of padding in front of each row, in the shorter prompt; a row that loses less has fewer.

        Only padding in front is ever taken away, so that columns that stay keep their order, and count the same
        from the end as in the full prompt.
        """
        drops, before = self.drops, self._padding_in_front
        bodies = [self.prompt.ids.shape[1] - lead - lost for lead, lost in zip(before, drops, strict=True)]
        width = max(bodies) + min(before) + int(self.guard)
        return [width - body for body in bodies]

    @property
    def width(self) -> int:
        """Columns of the shorter prompt."""
        return self.prompt.ids.shape[1] - self._padding_in_front[0] - self.drops[0] + self.lead[0]

    @cached_property
    def _padding_in_front(self) -> list[int]:
        attended = self.prompt.attended
        first = attended.int().argmax(dim=1)
        return torch.where(attended.any(dim=1), first, attended.shape[1]).tolist()

    @cached_property
    def starts(self) -> list[int]:
        """Where each image's kept tokens begin among all kept ones, and their number."""
        return list(accumulate(self.counts, initial=0))

    @cached_property
    def template(self) -> Tensor:
        """``[B, L']``: source columns, with the first tokens of each image in the places of kept ones.

        Padding added in front is taken from padding that the row has, else from its first column of text.
        """
        ids, attended = self.prompt.ids, self.prompt.attended
        stays = torch.ones_like(attended)
        for image, count in zip(self.images, self.counts, strict=True):
            stays[image.row, image.columns[count:]] = False
        found = torch.empty(len(ids), self.width, dtype=torch.long)
        for row, (lead, before) in enumerate(zip(self.lead, self._padding_in_front, strict=True)):
            body = stays[row].nonzero().flatten()[before:]
            found[row, lead:] = body
            kept = min(lead, before)
            found[row, lead - kept : lead] = torch.arange(before - kept, before)
            if lead > before:
                found[row, : lead - before] = self._filler(row)
        return found

    def _filler(self, row: int) -> int:
        """A column whose token may stand in a masked column: penalties on repeated tokens count those, too."""
        attended = self.prompt.attended[row]
        return int((self.texts[row] if bool(attended.all()) else ~attended).int().argmax())

    @cached_property
    def texts(self) -> Tensor:
        """``[B, L]`` bool: columns that stand for no image."""
        texts = torch.ones_like(self.prompt.attended)
        for image in self.images:
            texts[image.row, image.columns] = False
        return texts

    @cached_property
    def added(self) -> Tensor:
        """``[B, L']`` bool: padding that the prompt did not have."""
        before = self._padding_in_front
        extra = [max(0, lead - had) for lead, had in zip(self.lead, before, strict=True)]
        return torch.arange(self.width) < torch.tensor(extra)[:, None]

    @cached_property
    def slots(self) -> Tensor:
        """``[K]``: places of the kept tokens of all images in the flat ``[B * L']`` template."""
        rows, columns = (~self.added).nonzero(as_tuple=True)
        place = torch.full_like(self.prompt.ids, -1)
        place[rows, self.template[rows, columns]] = rows * self.width + columns
        kept = [
            place[image.row, image.columns[:count]] for image, count in zip(self.images, self.counts, strict=True)
        ]
        return torch.cat(kept)

    @cached_property
    def is_solid(self) -> bool:
        """Whether each image's tokens stand side by side: then no text moves, whichever of them stay."""
        return all(int(image.columns[-1] - image.columns[0]) == image.n - 1 for image in self.images)

    @cached_property
    def mask(self) -> Tensor | None:
        """``[B, L']`` bool, attended columns; None where padding lies within an image: they hang on the choice."""
        for image in self.images:
            if not bool(self.prompt.attended[image.row, image.columns[0] : image.columns[-1] + 1].all()):
                return None
        return self.prompt.attended.gather(1, self.template) & ~self.added

    @cached_property
    def attended_before(self) -> list[int]:
        """Attended columns of each row of the full prompt."""
        counts: list[int] = self.prompt.attended.sum(dim=1).tolist()
        return counts

    @property
    def attended_after(self) -> list[int]:
        """Attended columns of each row of the shorter prompt."""
        return [before - lost for before, lost in zip(self.attended_before, self.drops, strict=True)]

    @cached_property
    def full_positions(self) -> Tensor:
        """``[B, L]`` positions of the full prompt on one axis."""
        attended = self.prompt.attended
        if self.prompt.counted:
            return (attended.long().cumsum(dim=1) - 1).clamp(min=0)
        return torch.arange(attended.shape[1]).expand(attended.shape)
