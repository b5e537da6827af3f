"""Plain DPP: the most diverse tokens by the determinant of their cosines."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.methods.authors import refuse_beyond_rank, refuse_zero_rows
from foveate.methods.base import widest
from foveate.methods.selecting.residual import Residual, rows_of
from foveate.tokens import VisualTokens


@dataclass(frozen=True)
class DPP(Residual):
    """Greedy MAP of the determinantal point process with the cosine kernel: CDPruner without its text.

    Each step multiplies the determinant by the residual energy of a row of length 1: `select_residual`
    of unit rows, ``w = 1``, as ``RRQR(rows="unit")``. The first choice is a tie of all rows, the lowest index;
    the next ones are between rows nearly orthogonal to it, whose energies float32 cannot tell apart: computed
    in float64 where the device has it.

    Attributes:
        faithful: whether to refuse what greedy MAP has no answer for, instead of the repairs below.

    Raises:
        InvalidFeatures, InvalidBudget: ``rank``, where ``faithful`` refuses zero rows, or k over the rank.

    Source: arXiv 1709.05135 (fast greedy MAP).
    Differs: goes on by index where the determinant is 0 for every choice (k over the rank, duplicates, zero
        rows), where greedy MAP stops with fewer tokens.
    """

    source: ClassVar[str] = "arXiv 1709.05135"

    faithful: bool = False

    def vectors(self, tokens: VisualTokens) -> Tensor:
        """``[..., N, D]``: the features at length 1, in float64 where the device has it."""
        return rows_of(widest(tokens.features), "unit")

    def refuse(self, tokens: VisualTokens, order: Tensor) -> None:
        """With ``faithful``, zero rows and k over the rank."""
        if self.faithful:
            refuse_zero_rows(tokens.features)
            refuse_beyond_rank(tokens.features, order)
