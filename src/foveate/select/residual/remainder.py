"""What the rows kept leave of every row: from here a factorisation whose energies got uncertain starts again."""

import torch
from torch import Tensor

from foveate.select.residual.rows import RANK_TOLERANCE, magnitudes, outside


class Remainder:
    """Every row's part outside the span of the rows kept; first the rows as they are.

    ``rows`` of ``inverse`` length, ``size`` relative to the row's own (0 where it is rounding).
    """

    def __init__(self, rows: Tensor, norms: Tensor) -> None:
        self.magnitude = magnitudes(norms)
        self.rows = rows
        self.inverse = torch.where(norms > 0, 1 / norms, 0).to(rows.dtype)
        self.size = (norms > 0).to(norms.dtype)
        self._basis = rows[:0]  # orthonormal, of the rows kept

    def take_out(self, kept: Tensor) -> Tensor:
        """Take the span of more rows out; ``[N]`` what is left of each squared length."""
        kept = kept[self.inverse[kept] > 0]  # others span nothing
        if len(kept):
            span = torch.linalg.qr((self.rows[kept] * self.inverse[kept, None]).T).Q.T
            span = torch.linalg.qr(outside(span, self._basis).T).Q.T
            self._basis = torch.cat([self._basis, span])
        residual = outside(self.rows * self.inverse[:, None], self._basis)
        shrunk = torch.linalg.vector_norm(residual, dim=1, dtype=self.size.dtype)
        size = self.size * shrunk
        explained = size <= RANK_TOLERANCE * torch.finfo(residual.dtype).eps
        if len(self._basis) == min(self.rows.shape):
            explained[:] = True
        self.rows = residual
        self.size = torch.where(explained, 0, size)
        self.inverse = torch.where(explained, 0, 1 / shrunk).to(residual.dtype)
        return torch.where(explained, 0, shrunk).square()
