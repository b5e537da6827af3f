"""Column subset selection by rank-revealing QR: reconstruction alone, no text."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.methods.base import Method
from foveate.select import select_residual
from foveate.tokens import VisualTokens


@dataclass(frozen=True)
class RRQR(Method):
    """Keep the token with the largest projection residual, again and again: ``w = 1``, raw rows.

    SPARE without its anti-relevance, and ResPrune without its text and seed token.

    Source: QR with column pivoting (Businger and Golub 1965); SPARE, arXiv 2606.18681.
    Differs: none.
    """

    source: ClassVar[str] = "Businger & Golub 1965"
    nested: ClassVar[bool] = True

    def rank(self, tokens: VisualTokens, k: int) -> Tensor:
        """See `Method.rank`."""
        return select_residual(tokens.features, k)
