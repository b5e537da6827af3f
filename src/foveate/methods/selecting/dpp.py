"""Plain DPP: the most diverse tokens by the determinant of their cosines."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.methods.authors import refuse_beyond_rank, refuse_zero_rows
from foveate.methods.base import Method, widest
from foveate.methods.rows import rows_of
from foveate.select import select_residual
from foveate.tokens import VisualTokens


@dataclass(frozen=True)
class DPP(Method):
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
    complexity: ClassVar[str] = "O(k N D)"
    nested: ClassVar[bool] = True

    faithful: bool = False

    def rank(self, tokens: VisualTokens, k: int) -> Tensor:
        """See `Method.rank`."""
        if self.faithful:
            refuse_zero_rows(tokens.features)
        order = select_residual(rows_of(widest(tokens.features), "unit"), k)
        if self.faithful:
            refuse_beyond_rank(tokens.features, order)
        return order
