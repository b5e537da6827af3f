"""Column subset selection by rank-revealing QR: reconstruction alone, no text."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from foveate.methods.base import one_of
from foveate.methods.selecting.residual import ROWS, Residual, rows_of
from foveate.tokens import VisualTokens


@dataclass(frozen=True)
class RRQR(Residual):
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

    rows: Literal["raw", "unit"] = "raw"

    def __post_init__(self) -> None:
        one_of("rows", self.rows, ROWS)

    def vectors(self, tokens: VisualTokens) -> Tensor:
        """``[..., N, D]``: the features, raw or of length 1."""
        return rows_of(tokens.features, self.rows)
