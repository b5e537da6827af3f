"""`select_residual` in a few lines of torch, on any device: what the faster implementations are compared with.

The residual matrix is not formed. One orthonormal row ``q`` per step is enough:
``E_i <- E_i - (v_i . q)^2``, a single product with the features, O(N D); the kept rows are
orthogonalised twice, O(k D) ("twice is enough": Giraud, Langou, Rozloznik 2005).
"""

import torch
from torch import Tensor

from foveate.select.residual.rows import RANK_TOLERANCE, TIE_TOLERANCE, magnitudes, outside


def order_by_steps(rows: Tensor, norms: Tensor, k: int, weights: Tensor, first: int | None) -> list[int]:
    """Up to ``k`` indices in order of selection; fewer when these explain all rows of weight > 0."""
    basis = Basis(rows, norms, k)
    weights = weights.clone()
    order: list[int] = []
    while len(order) < k:
        index = basis.winner(weights) if order or first is None else first
        if index is None:
            break
        basis.add(index)
        order.append(index)
        weights[index] = 0
    return order


class Basis:
    """An orthonormal basis that grows row by row, and every row's energy outside it.

    Energies are relative to the row's own, so that rows of all magnitudes are treated alike; the
    magnitudes are kept beside, in double.

    They are kept by subtraction, which cancels: an energy that fell by more than sqrt(eps) since it was
    last exact (geqp3's criterion) is uncertain. Where an uncertain row wins, or could win given what may
    have been lost, all energies are computed afresh: a few times in a run at most, on real features.
    """

    def __init__(self, rows: Tensor, norms: Tensor, capacity: int) -> None:
        self._eps = torch.finfo(rows.dtype).eps
        self.magnitude = magnitudes(norms)
        self._rows = rows
        self._inverse = torch.where(norms > 0, 1 / norms, 0).to(rows.dtype)
        self._energy = (norms > 0).to(rows.dtype)
        self._exact = self._energy  # as last computed without subtraction
        self._basis = rows.new_empty(min(capacity, *rows.shape), rows.shape[1])
        self._size = 0
        self._size_of_exact = 0

    def total(self) -> Tensor:
        """The energy outside the basis, of all rows."""
        return (self.magnitude * self._energy).sum()

    def winner(self, weights: Tensor) -> int | None:
        """The row with the largest weighted energy; None when the rows of weight > 0 are explained."""
        weights = weights * self.magnitude
        index = self._best(weights)
        if self._size == self._size_of_exact or (index is not None and self._is_certain(index, weights)):
            return index
        self._refresh()
        return self._best(weights)

    def add(self, index: int) -> None:
        """Grow by a row's residual, and take that direction's share from every energy."""
        residual = self._outside(self._rows[index] * self._inverse[index])
        size = torch.linalg.vector_norm(residual)
        if self._size == len(self._basis) or size <= RANK_TOLERANCE * self._eps:
            return
        direction = residual / size
        self._basis[self._size] = direction
        self._size += 1
        share = (self._rows @ direction) * self._inverse
        self._energy = (self._energy - share.square()).clamp(min=0)

    def _best(self, weights: Tensor) -> int | None:
        return _first_best(weights * self._energy, TIE_TOLERANCE * self._eps)

    def _is_certain(self, index: int, weights: Tensor) -> bool:
        uncertain = self._energy <= self._eps**0.5 * self._exact
        lost = RANK_TOLERANCE * self._eps * self._exact
        most = torch.where(uncertain, weights * (self._energy + lost), 0).amax()
        return not bool(uncertain[index]) and bool(most < weights[index] * self._energy[index])

    def _outside(self, rows: Tensor) -> Tensor:
        return outside(rows, self._basis[: self._size])

    def _refresh(self) -> None:
        residual = self._outside(self._rows * self._inverse[:, None])
        size = torch.linalg.vector_norm(residual, dim=1)
        self._energy = self._exact = torch.where(size > RANK_TOLERANCE * self._eps, size.square(), 0)
        self._size_of_exact = self._size


def _first_best(scores: Tensor, tie: float) -> int | None:
    """The lowest index among the best scores; None when nothing is left to explain."""
    best = scores.amax()
    return int((scores >= best * (1 - tie)).byte().argmax()) if best > 0 else None
