"""DivPrune: tokens that are far from each other."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.errors import InvalidFeatures
from foveate.methods.authors import refuse_repeats, refuse_zero_rows
from foveate.methods.base import Method
from foveate.select import select_farthest
from foveate.tokens import VisualTokens


@dataclass(frozen=True)
class DivPrune(Method):
    """Max-min diversity: keep the token whose nearest kept token is the farthest away, by cosine; no text.

    Attributes:
        faithful: whether to refuse what the authors' code has no answer for, instead of the repairs below.

    Raises:
        InvalidFeatures, InvalidBudget: ``rank``, where ``faithful`` refuses zero rows, a single token, or
            more tokens than there are directions.

    Source: arXiv 2503.02175.
    Differs: computed in float32 or better, where the authors' half precision repeats tokens (with
        ``faithful``, too). Without it, tokens are never kept twice: once every direction is taken, the rest
        is filled by index, zero rows last.
    """

    source: ClassVar[str] = "arXiv 2503.02175"
    complexity: ClassVar[str] = "O(N^2 D + k N)"
    nested: ClassVar[bool] = True

    faithful: bool = False

    def rank(self, tokens: VisualTokens, k: int) -> Tensor:
        """See `Method.rank`."""
        if self.faithful:
            refuse_zero_rows(tokens.features)
            if len(tokens.features) == 1:
                raise InvalidFeatures("1 token: allowed with faithful=True are 2 or more, each has a nearest one")
        order = select_farthest(tokens.features, k)
        if self.faithful:
            refuse_repeats(tokens.features, order)
        return order
