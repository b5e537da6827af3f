"""ToMe: tokens joined in pairs of the most alike, until k are left."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.methods.merging.mixing import Mixing
from foveate.select import merge_bipartite
from foveate.tokens import Signal, VisualTokens


@dataclass(frozen=True)
class ToMe(Mixing):
    """Match every second token with the most alike of the others, and join the pairs that are most alike.

    A joined token is the mean of all that are in it, at the place of the one that the others joined.

    Attributes:
        space: as `Mixing`'s.
        faithful: see ``Differs``.

    Source: arXiv 2210.09461, as a step before the language model: LightCompress at 9701d03.
    Differs: it acts once, on what the vision tower gives, not within each of its layers. The CLS token, which
        is never merged, is left out. Tokens stand in raster order. Below half of them the rest are matched again,
        by the means of their keys; with ``faithful`` that is an error. A zero key is like no other; with
        ``faithful`` it is an error, since the authors' order is arbitrary there. Keys are compared in float32.
    """

    source: ClassVar[str] = "arXiv 2210.09461"
    complexity: ClassVar[str] = "O(N^2 D)"

    def rank(self, tokens: VisualTokens, k: int) -> Tensor:
        """See `Method.rank`: in raster order."""
        return self._decide(tokens, k)[0]

    def mix(self, tokens: VisualTokens, k: int) -> Tensor:
        """See `Mixing.mix`."""
        return self._decide(tokens, k)[1]

    def _decide(self, tokens: VisualTokens, k: int) -> tuple[Tensor, Tensor]:
        return merge_bipartite(tokens.signal(Signal.KEYS).mean(dim=1), k, faithful=self.faithful)
