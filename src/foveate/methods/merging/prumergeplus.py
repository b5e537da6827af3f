"""PruMerge+: PruMerge with tokens spread over the image beside those attended to most."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.errors import InvalidBudget, InvalidFeatures
from foveate.methods.base import top
from foveate.methods.merging.prumerge import PruMerge
from foveate.select import count_outliers

TOKENS = 576  # of LLaVA-1.5; the authors' code is written for them alone, and samples all but the last


@dataclass(frozen=True)
class PruMergePlus(PruMerge):
    """As `PruMerge`, with a quarter of the k - 1 tokens chosen by attention and the others spread evenly.

    Rounded half up, and one at least. Those by attention come first; of the R tokens left, in raster order,
    each s-th part gives the one in its middle.

    Attributes:
        neighbours: as `PruMerge`'s.
        attention: as `Attending`'s.
        space: as `Mixing`'s.
        faithful: see ``Differs``.

    Raises:
        InvalidOption: an option outside the above.

    Source: arXiv 2403.15388; github.com/42Shawn/LLaVA-PruMerge at 097c041.
    Differs: beside what `PruMerge` says: k is given, and three tokens are sampled for one by attention, which
        is what the authors' step of ``int(1 / ratio) / 3`` aims at, exactly, for every number of tokens and every
        ratio. With ``faithful``, the authors' sampling and own count: another k, another number of tokens
        than 576, and no outlier at all are errors.
    """

    source: ClassVar[str] = "arXiv 2403.15388"
    complexity: ClassVar[str] = "O(k N D)"

    def choose(self, scores: Tensor, count: int) -> Tensor:
        """See `PruMerge.choose`."""
        if self.faithful:
            own = sampled(scores, count_outliers(scores) / len(scores))
            if len(own) != count:
                raise InvalidBudget(f"k={count + 1} with faithful=True: allowed is this image's {len(own) + 1}")
            return own
        attended = top(scores, max(1, int(count / 4 + 0.5)))
        left = torch.ones_like(scores, dtype=torch.bool)
        left[attended] = False
        rest, s = left.nonzero().flatten(), count - len(attended)
        middles = (2 * torch.arange(s, device=scores.device) + 1) * len(rest) // max(1, 2 * s)
        return torch.cat([attended, rest[middles]])


def sampled(scores: Tensor, ratio: float, fixed: bool = False) -> Tensor:
    """The authors' choice: ``int(N * ratio)`` tokens by attention, then every so many-th of the image.

    Args:
        scores: ``[576]`` attention.
        ratio: the share of outliers, or 1/8 for ``fixed``.
        fixed: the authors' second variant: a step of ``int(1 / ratio)`` from its half on, and tokens that
            attention has chosen again; the first has a step of a third and leaves those out.

    Returns:
        Indices, those by attention first; distinct unless ``fixed``.

    Raises:
        InvalidFeatures: another number of tokens, or a ratio of 0.
    """
    if len(scores) != TOKENS:
        raise InvalidFeatures(f"{len(scores)} tokens with faithful=True: allowed are {TOKENS}")
    if ratio <= 0:
        raise InvalidFeatures(f"ratio={ratio} with faithful=True: allowed is above 0, one outlier at least")
    attended = top(scores, int(len(scores) * ratio))
    step = int(1 / ratio) if fixed else int(int(1 / ratio) / 3)
    spread = torch.arange(step // 2 if fixed else 0, TOKENS - 1, step, device=scores.device)
    return torch.cat([attended, spread if fixed else spread[~torch.isin(spread, attended)]])
