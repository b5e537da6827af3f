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

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from foveate.select.residual.remainder import Remainder
from foveate.select.residual.rows import DOUBT, RANK_TOLERANCE, TIE_TOLERANCE

Array = npt.NDArray[Any]

EARLY = 64  # rows kept, until which more columns are wasted
EARLY_PANEL, PANEL = 32, 48  # columns computed together; matrix products like these widths


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
        self._left = Remainder(rows, norms)
        self._eps = torch.finfo(rows.dtype).eps
        self._tie = 1 - TIE_TOLERANCE * self._eps
        self._scores = np.empty(len(rows))
        self.order: list[int] = []
        self._weights = weights * self._left.magnitude.numpy()  # of free rows; 0 of those kept
        self._spanned = 0  # dimensions taken out at restarts
        self._directions = rows.new_empty(PANEL, rows.shape[1])  # fresh memory is slower than the copy
        self._factor = np.empty((min(k, *rows.shape), len(rows)), self._left.inverse.numpy().dtype)
        self._start()

    def _start(self) -> None:
        self._energy = (self._left.size > 0).double().numpy()
        self._heaviest = self._weights.max()  # or more: rows kept since count until it matters
        self._columns: dict[int, tuple[Array, int]] = {}  # and how many of the rows kept are out of it
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
        energy, count = float(self._energy[index]), len(self._kept)
        if energy > (RANK_TOLERANCE * self._eps) ** 2 and self._spanned + count < len(self._factor):
            if index not in self._columns:
                self._compute_columns(index)
            column, done = self._columns[index]
            share = self._factor[count]
            if done < count:
                since = self._factor[done:count]
                column = np.subtract(column, np.dot(since[:, index], since), out=share)
            np.multiply(column, energy**-0.5, out=share)
            self._energy -= share * share
            self._kept.append(index)
        self.order.append(index)
        self._weights[index] = 0

    def _best(self) -> tuple[int, float]:
        scores = np.multiply(self._weights, self._energy, out=self._scores)
        index = int((scores >= scores[scores.argmax()] * self._tie).argmax())
        return index, float(scores[index])

    def _is_certain(self, index: int, score: float) -> bool:
        """Whether cancellation can have changed neither the winner nor hidden a rival.

        All energies are off by some eps, so one that fell under DOUBT is right to eps^(2/3) only. (For
        geqp3, whose directions stay orthonormal, sqrt(eps) is small enough for the same.)
        """
        doubt, lost = self._eps**DOUBT, RANK_TOLERANCE * self._eps
        if self._energy[index] <= doubt:
            return False
        if score > self._heaviest * (doubt + lost):
            return True
        self._heaviest = self._weights.max()
        rivals = self._weights * (self._energy + lost)
        return bool(np.max(rivals, where=self._energy <= doubt, initial=0) < score)

    def _compute_columns(self, index: int) -> None:
        """The column of a row, and of those with the largest scores, without the part of the rows kept."""
        scores = self._weights * self._energy
        scores[list(self._columns)] = 0
        scores[index] = np.inf
        width = EARLY_PANEL if len(self._kept) < EARLY else PANEL
        panel = np.argpartition(-scores, min(width, len(scores)) - 1)[:width]
        panel = panel[scores[panel] > 0]
        rows, inverse, count = self._left.rows, self._left.inverse, len(self._kept)
        directions, chosen = self._directions[: len(panel)], torch.from_numpy(panel)
        torch.index_select(rows, 0, chosen, out=directions).mul_(inverse[chosen, None])
        columns = (rows @ directions.T).mul_(inverse[:, None]).T.contiguous()
        factor = torch.from_numpy(self._factor[:count])
        columns.addmm_(torch.from_numpy(self._factor[:count, panel]).T, factor, alpha=-1)
        self._columns.update(
            (row, (column, count)) for row, column in zip(panel.tolist(), columns.numpy(), strict=True)
        )

    def _restart(self) -> None:
        self._weights *= self._left.take_out(torch.tensor(self._kept)).numpy()
        self._spanned += len(self._kept)
        self._start()
