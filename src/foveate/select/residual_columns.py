"""`select_residual` on a CPU: pivoted Cholesky of the Gram matrix, its columns computed when they are needed.

A step needs one column of the Gram matrix, that of the row it keeps:

    c = (G[:, j] - C C[j]) / sqrt(E_j) ,   E_i <- E_i - c_i^2 ,   C <- [C, c] .

Energies are exact at every step; all that is guessed is which columns will be asked for. One alone costs
a pass over all features, some tens together hardly more. So when one is missing, those of the rows with
the next largest scores are computed with it: most of them are kept within the next steps.

Cholesky loses digits where energies get small: there the features are replaced by their residuals, and
the factorisation starts again from them.

The steps are numpy: with N numbers per operation, torch would spend most of its time on calls.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from foveate.select.residual_rows import RANK_TOLERANCE, TIE_TOLERANCE

FIRST_PANEL = 16  # columns computed together at first, then by what the last ones were good for
LEAST_PANEL, LARGEST_PANEL = 8, 32


def order_by_columns(rows: Tensor, norms: Tensor, k: int, weights: Tensor, first: int | None) -> list[int]:
    """Up to ``k`` indices in order of selection; fewer when these explain all rows of weight > 0."""
    residuals = _Residuals(rows, norms, weights.numpy(), k)
    while len(residuals.order) < k:
        index = residuals.winner() if residuals.order or first is None else first
        if index is None:
            break
        residuals.keep(index)
    return residuals.order


class _Residuals:
    """Every row's energy outside the rows kept, relative to the row as it was at the last restart."""

    def __init__(self, rows: Tensor, norms: Tensor, weights: npt.NDArray[np.float64], k: int) -> None:
        self._rows = rows
        self._eps = torch.finfo(rows.dtype).eps
        peak = norms.amax()
        magnitude = (norms / peak if peak > 0 else norms).square()
        self.order: list[int] = []
        self._weights = weights * magnitude.numpy()  # of free rows; 0 of those kept
        self._inverse = torch.where(norms > 0, 1 / norms, 0).to(rows.dtype)
        self._size = (norms > 0).to(norms.dtype)  # at the last restart, of the row's own
        self._basis = rows[:0]  # orthonormal, of the rows kept before the last restart
        self._factor = np.empty((min(k, *rows.shape), len(rows)), self._inverse.numpy().dtype)
        self._start()

    def _start(self) -> None:
        self._energy = (self._size > 0).double().numpy()
        self._heaviest = self._weights.max()  # or more: rows kept since count until it matters
        self._columns: dict[int, npt.NDArray[np.floating]] = {}
        self._panel = FIRST_PANEL
        self._served = 0
        self._kept: list[int] = []  # since the restart, without those that added nothing

    def winner(self) -> int | None:
        """The row with the largest weighted energy; None when the rows of weight > 0 are explained."""
        index, score = self._best()
        if not self._kept or self._is_certain(index, score):
            return index if score > 0 else None
        self._restart()
        index, score = self._best()
        return index if score > 0 else None

    def keep(self, index: int) -> None:
        """Take the row, and its share from every energy."""
        energy, count = self._energy[index], len(self._kept)
        if energy > (RANK_TOLERANCE * self._eps) ** 2 and len(self._basis) + count < len(self._factor):
            if index not in self._columns:
                self._compute_columns(index)
            column = self._columns[index]
            if count:
                column = column - self._factor[:count, index] @ self._factor[:count]
            share = np.multiply(column, energy**-0.5, out=self._factor[count], casting="same_kind")
            self._energy -= share * share
            np.maximum(self._energy, 0, out=self._energy)
            self._kept.append(index)
            self._served += 1
        self.order.append(index)
        self._weights[index] = 0

    def _best(self) -> tuple[int, float]:
        scores = self._weights * self._energy
        best = scores.max()
        index = int((scores >= best * (1 - TIE_TOLERANCE * self._eps)).argmax())
        return index, float(scores[index])

    def _is_certain(self, index: int, score: float) -> bool:
        """Whether cancellation can have changed neither the winner nor hidden a rival.

        An energy that fell by more than sqrt(eps) since it was last exact is uncertain (geqp3's criterion).
        """
        doubt, lost = self._eps**0.5, RANK_TOLERANCE * self._eps
        if self._energy[index] <= doubt:
            return False
        if score > self._heaviest * (doubt + lost):
            return True
        self._heaviest = self._weights.max()
        rivals = self._weights * (self._energy + lost)
        return bool(np.max(rivals, where=self._energy <= doubt, initial=0) < score)

    def _compute_columns(self, index: int) -> None:
        """The Gram matrix's column of a row, and of those with the largest scores."""
        if self._columns:
            self._panel = min(max(2 * self._served, LEAST_PANEL), LARGEST_PANEL)
        self._served = 0
        scores = self._weights * self._energy
        scores[list(self._columns)] = 0
        scores[index] = np.inf
        panel = np.argpartition(-scores, min(self._panel, len(scores)) - 1)[: self._panel]
        panel = panel[scores[panel] > 0]
        chosen = torch.from_numpy(panel)
        directions = self._rows[chosen] * self._inverse[chosen, None]
        columns = (self._rows @ directions.T).mul_(self._inverse[:, None]).T.contiguous()
        self._columns.update(zip(panel.tolist(), columns.numpy(), strict=True))

    def _restart(self) -> None:
        """Take the part in the span of the rows kept out of all rows, "twice is enough"."""
        kept = torch.tensor(self._kept)
        span = torch.linalg.qr((self._rows[kept] * self._inverse[kept, None]).T).Q.T
        span = torch.linalg.qr(_outside(span, self._basis).T).Q.T
        self._basis = torch.cat([self._basis, span])
        residual = _outside(self._rows * self._inverse[:, None], self._basis)
        shrunk = torch.linalg.vector_norm(residual, dim=1, dtype=self._size.dtype)
        size = self._size * shrunk
        explained = size <= RANK_TOLERANCE * self._eps
        if len(self._basis) == min(self._rows.shape):
            explained[:] = True
        self._size = torch.where(explained, 0, size)
        self._weights *= torch.where(explained, 0, shrunk).square().numpy()
        self._rows = residual
        self._inverse = torch.where(explained, 0, 1 / shrunk).to(residual.dtype)
        self._start()


def _outside(rows: Tensor, basis: Tensor) -> Tensor:
    for _ in range(2):
        rows = rows - (rows @ basis.T) @ basis
    return rows
