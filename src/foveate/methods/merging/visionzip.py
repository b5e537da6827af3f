"""VisionZip: the tokens attended to most, and a few contextual ones that take in the rest."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from foveate.errors import InvalidOption
from foveate.methods.attention import Attending
from foveate.methods.base import at_least_zero, top
from foveate.methods.merging.mixing import Mixing
from foveate.select import merge_contextual
from foveate.tokens import Signal, VisualTokens


@dataclass(frozen=True)
class VisionZip(Attending, Mixing):
    """Keep the dominant tokens; every ``R // c``-th of the other R takes in those that are most like it.

    Of k tokens, ``c = max(1, round(k * contextual))`` are contextual; attention picks the other ``k - c``.
    Alike are tokens whose mean keys over heads have a large cosine.

    Attributes:
        contextual: share of contextual tokens, 0 to 1: 10 of 64, 20 of 128, 30 of 192 in the paper.
        attention: as `Attending`'s: the paper's for towers with, and without a CLS token.
        space: as `Mixing`'s.
        faithful: see ``Differs``.

    Raises:
        InvalidOption: an option outside the above.

    Source: arXiv 2412.04467; github.com/dvlab-research/VisionZip at 3151f6d.
    Differs: the CLS token is not among the k, for it has no place in the image: another dominant token is.
        Contextual tokens stand at their targets' places, not behind all others. A ``contextual`` of 0 keeps
        dominant tokens alone; a single token is dominant; a target whose key is zero takes in what is like no
        other target, not everything: with ``faithful`` these are an error, a contextual token, and everything.
        Kept is the stride of the targets, by which the last few tokens of the rest never are one.
        Attention and keys are computed in float32.
    """

    source: ClassVar[str] = "arXiv 2412.04467"
    complexity: ClassVar[str] = "O(N^2 D)"

    contextual: float = 10 / 64

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_zero("contextual", self.contextual)
        if self.contextual > 1 or (self.faithful and self.contextual == 0):
            allowed = f"a number {'above 0' if self.faithful else 'from 0'} to 1"
            raise InvalidOption(
                f"contextual={self.contextual!r} with faithful={self.faithful}: allowed is {allowed}"
            )

    @property
    def strict(self) -> bool:
        """See `Attending.strict`: the paper has both attentions."""
        return False

    def split(self, k: int) -> tuple[int, int]:
        """How many of ``k`` tokens are dominant, and how many contextual."""
        contextual = min(k, max(1, round(k * self.contextual))) if self.contextual else 0
        if not self.faithful:
            contextual = min(contextual, k - 1)
        return k - contextual, contextual

    def rank(self, tokens: VisualTokens, k: int) -> Tensor:
        """See `Method.rank`: dominant tokens by attention, then the contextual ones' targets in raster order."""
        dominant, targets, _ = self._decide(tokens, k)
        return torch.cat([dominant, targets])

    def mix(self, tokens: VisualTokens, k: int) -> Tensor:
        """See `Mixing.mix`."""
        dominant, _, shares = self._decide(tokens, k)
        return torch.cat([one_hot(dominant, shares.shape[1]).to(shares), shares])

    def _decide(self, tokens: VisualTokens, k: int) -> tuple[Tensor, Tensor, Tensor]:
        count, contextual = self.split(k)
        dominant = top(self.scores(tokens, k), count)
        keys = tokens.signal(Signal.KEYS).mean(dim=1)
        return dominant, *merge_contextual(keys, dominant, contextual, faithful=self.faithful)
