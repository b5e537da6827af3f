"""PruMerge: the tokens attended to most take in their neighbours; one more stands for all others."""

from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar

import torch
from torch import Tensor

from foveate.errors import InvalidOption
from foveate.methods.attention import Attending
from foveate.methods.base import top
from foveate.methods.merging.mixing import Mixing
from foveate.select import merge_neighbours
from foveate.tokens import Signal, VisualTokens


@dataclass(frozen=True)
class PruMerge(Attending, Mixing):
    """Add to each of the k - 1 tokens attended to most its nearest neighbours, weighted with attention.

    The k-th token is the weighted sum of all that were not chosen, at the place of the first of them by
    attention. Attention is that of all heads' channels at once, as one head (`Signal.JOINT_ATTENTION`).

    Attributes:
        neighbours: how many, 1 or more; near are tokens whose keys have a large cosine.
        attention: as `Attending`'s; ``received`` stands in where the tower has no CLS token, for which the paper
            has none: a distribution over patches all the same, mean over heads and queries. With ``faithful``
            it does not.
        space: as `Mixing`'s.
        faithful: see ``Differs``.

    Raises:
        InvalidOption: an option outside the above.

    Source: arXiv 2403.15388; github.com/42Shawn/LLaVA-PruMerge at 097c041.
    Differs: k is given; the paper's own count of an image is ``1 + select.count_outliers(scores)``, here of
        each image alone. Attention and keys are of the layer whose output the projector reads, not of the last
        one. The token for the others has a place in the image, not behind it. A single token is the one attended
        to most; images of fewer than 33 tokens have fewer neighbours: with ``faithful`` these are the token
        for all others, and an error. Attention and keys are computed in float32.
    """

    source: ClassVar[str] = "arXiv 2403.15388"
    complexity: ClassVar[str] = "O(k N D)"
    of_cls: ClassVar[Signal] = Signal.JOINT_ATTENTION

    neighbours: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.neighbours, bool) or not isinstance(self.neighbours, Integral) or self.neighbours < 1:
            raise InvalidOption(f"neighbours={self.neighbours!r}: allowed is an int of 1 or more")

    def rank(self, tokens: VisualTokens, k: int) -> Tensor:
        """See `Method.rank`: by attention; the place of the token for all others comes last."""
        scores, chosen = self._decide(tokens, k)
        if len(chosen) == k:
            return chosen
        left = torch.ones_like(scores, dtype=torch.bool)
        left[chosen] = False
        return torch.cat([chosen, scores.masked_fill(~left, -1).argmax()[None]])

    def mix(self, tokens: VisualTokens, k: int) -> Tensor:
        """See `Mixing.mix`."""
        scores, chosen = self._decide(tokens, k)
        keys = tokens.signal(Signal.KEYS).flatten(1)
        return merge_neighbours(keys, scores, chosen, self.neighbours, faithful=self.faithful)[:k]

    def choose(self, scores: Tensor, count: int) -> Tensor:
        """``[count]`` distinct indices of the tokens that take in others, given the attention ``[N]``."""
        return top(scores, count)

    def _decide(self, tokens: VisualTokens, k: int) -> tuple[Tensor, Tensor]:
        scores = self.scores(tokens, k)
        return scores, self.choose(scores, k - 1 if self.faithful else max(1, k - 1))
