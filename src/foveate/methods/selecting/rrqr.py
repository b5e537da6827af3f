"""Column subset selection by rank-revealing QR: reconstruction alone, no text."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from foveate.methods.base import Method, one_of
from foveate.methods.rows import ROWS, rows_of
from foveate.select import select_residual
from foveate.tokens import VisualTokens


@dataclass(frozen=True)
class RRQR(Method):
    """Keep the token with the largest projection residual, again and again: ``w = 1``.

    SPARE without its anti-relevance, and ResPrune without its text and seed token.

    Attributes:
        rows: ``raw``, so that a token's length counts, or ``unit``: plain DPP's greedy choice.

    Raises:
        InvalidOption: other rows.

    Source: QR with column pivoting (Businger and Golub 1965); SPARE, arXiv 2606.18681.
    Differs: none.
    """

    source: ClassVar[str] = "Businger & Golub 1965"
    complexity: ClassVar[str] = "O(k N D)"
    nested: ClassVar[bool] = True

    rows: Literal["raw", "unit"] = "raw"

    def __post_init__(self) -> None:
        one_of("rows", self.rows, ROWS)

    def rank(self, tokens: VisualTokens, k: int) -> Tensor:
        """See `Method.rank`."""
        return select_residual(rows_of(tokens.features, self.rows), k)
