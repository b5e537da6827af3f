"""Greedy weighted residual selection: keep the row that the rows kept so far explain least.

With ``S`` the rows kept and ``P_S`` the orthogonal projector on their span, each step takes

    argmax_i  w_i * ||v_i - P_S v_i||^2 .

Scaling a row changes no span, so this is QR with column pivoting of the columns ``sqrt(w_i) v_i``
(LAPACK geqp3), pivoted Cholesky of their Gram matrix (pstrf), and greedy MAP of the determinantal
point process with that kernel.

The residual matrix is never formed. One orthonormal row ``q`` per step is enough:
``E_i <- E_i - (v_i . q)^2``, a single product with the features, O(N D); the kept rows are
orthogonalised twice, O(k D) ("twice is enough": Giraud, Langou, Rozloznik 2005).
"""

from numbers import Integral

import torch
from torch import Tensor

from foveate.errors import InvalidBudget, InvalidFeatures

# In units of the machine epsilon. A residual shorter than RANK_TOLERANCE * eps of the row itself is
# rounding; scores within TIE_TOLERANCE * eps of the best are ties and go to the lowest index.
RANK_TOLERANCE = 64.0
TIE_TOLERANCE = 32.0


@torch.no_grad()
def select_residual(
    features: Tensor, k: int, *, weight: Tensor | None = None, first: int | Tensor | None = None
) -> Tensor:
    """Indices of the ``k`` rows that greedily minimise the weighted reconstruction residual.

    Exactly ``k`` distinct indices always: once the rows kept explain all others (duplicates, rank under
    k), the rest is filled by weight, then by index. Ties go to the lowest index. A run for k' < k gives
    the first k' of the run for k. A batch gives what its items give one by one.

    Args:
        features: ``[N, D]`` or ``[B, N, D]``. float64 is computed in float64, all else in float32.
            Never changed.
        k: rows to select, ``1 <= k <= N``.
        weight: ``[N]`` (or ``[B, N]``), >= 0, fixed during the selection; None means 1.
        first: index of a row to start with, or ``[B]`` of them; None starts with the largest score.

    Returns:
        ``[k]`` or ``[B, k]`` int64, in order of selection.

    Raises:
        InvalidFeatures: wrong shapes, NaN or infinite values, a negative weight, ``first`` out of range.
        InvalidBudget: ``k`` is not an int in ``[1, N]``.

    Source: SPARE (arXiv 2606.18681) and ResPrune (arXiv 2603.21105), with weights as their methods set.
    """
    if features.dim() not in (2, 3) or features.shape[-2] == 0 or features.shape[-1] == 0:
        raise InvalidFeatures(f"features of shape {tuple(features.shape)}: allowed are [N, D] and [B, N, D]")
    n = features.shape[-2]
    if isinstance(k, bool) or not isinstance(k, Integral) or not 1 <= k <= n:
        raise InvalidBudget(f"k={k!r}: allowed is an int from 1 to the {n} rows at hand")
    if weight is not None and weight.shape != features.shape[:-1]:
        raise InvalidFeatures(
            f"weight of shape {tuple(weight.shape)}: allowed is {tuple(features.shape[:-1])}, one per row"
        )
    if features.dim() == 2:
        return _select(features, k, weight, first)
    starts = first.tolist() if isinstance(first, Tensor) and first.dim() == 1 else [first] * len(features)
    if len(starts) != len(features):
        raise InvalidFeatures(f"first has {len(starts)} entries: allowed is one per batch item, {len(features)}")
    if len(features) == 0:
        return torch.empty(0, k, dtype=torch.long, device=features.device)
    return torch.stack(
        [_select(item, k, None if weight is None else weight[b], starts[b]) for b, item in enumerate(features)]
    )


@torch.no_grad()
def residual_energy(features: Tensor, kept: Tensor) -> Tensor:
    """Reconstruction error along the way: ``||V - P_S V||_F^2 / ||V||_F^2`` after 0, 1, ... rows kept.

    Args:
        features: ``[N, D]``.
        kept: ``[k]`` row indices, in order of selection.

    Returns:
        ``[k + 1]``, from 1 downwards, in the dtype of the computation (float32 or float64); all zero
        where every feature is zero.

    Raises:
        InvalidFeatures: wrong shapes, NaN or infinite values, an index out of range.
    """
    if features.dim() != 2 or kept.dim() != 1:
        raise InvalidFeatures(
            f"features of shape {tuple(features.shape)}, kept of shape {tuple(kept.shape)}: "
            "allowed are [N, D] and [k]"
        )
    rows = _rows(features)
    basis = _Basis(rows, len(kept))
    total = basis.energy.sum()
    path = [total]
    for index in kept.tolist():
        basis.add(_row_index(index, len(rows)))
        path.append(basis.energy.sum())
    return torch.stack(path) / total if total > 0 else torch.zeros_like(torch.stack(path))


@torch.no_grad()
def optimal_energy(features: Tensor, k: int) -> Tensor:
    """The least reconstruction error any rank-0, 1, ..., k subspace leaves, relative to the total.

    The tails of the Gram spectrum (Eckart-Young): no choice of rows can do better. Computed in float64.

    Args:
        features: ``[N, D]``.
        k: the largest rank, ``0 <= k``.

    Returns:
        ``[k + 1]`` float64, from 1 downwards; all zero where every feature is zero.

    Raises:
        InvalidFeatures: wrong shape, NaN or infinite values.
        InvalidBudget: ``k`` is negative.
    """
    if features.dim() != 2:
        raise InvalidFeatures(f"features of shape {tuple(features.shape)}: allowed is [N, D]")
    if k < 0:
        raise InvalidBudget(f"k={k}: allowed is 0 or more")
    rows = _rows(features).double()
    gram = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
    spectrum = torch.linalg.eigvalsh(gram).clamp(min=0)  # ascending
    tails = torch.cat([spectrum.new_zeros(1), spectrum.cumsum(0)]).flip(0)
    tails = torch.nn.functional.pad(tails, (0, max(0, k + 1 - len(tails))))[: k + 1]
    return tails / tails[0] if tails[0] > 0 else tails


def _row_index(index: int | Tensor, n: int) -> int:
    index = int(index)
    if not 0 <= index < n:
        raise InvalidFeatures(f"row index {index}: allowed is 0 to {n - 1}")
    return index


def _rows(features: Tensor) -> Tensor:
    """Finite rows in the dtype of the computation, rescaled only where squares would overflow or vanish."""
    rows = features if features.dtype == torch.float64 else features.float()
    low, high = torch.aminmax(rows)  # one pass; NaN wins
    peak = torch.maximum(high, -low)
    if not bool(torch.isfinite(peak)):
        raise InvalidFeatures("features hold NaN or infinite values: allowed are finite numbers")
    limit = torch.finfo(rows.dtype).max ** 0.25
    return rows / peak if peak > limit or 0 < peak < 1 / limit else rows


def _weights(weight: Tensor | None, rows: Tensor) -> Tensor:
    if weight is None:
        return rows.new_ones(len(rows))
    weight = weight.to(device=rows.device, dtype=rows.dtype)
    if not bool(torch.isfinite(weight).all()) or bool((weight < 0).any()):
        raise InvalidFeatures("weight holds NaN, infinite or negative values: allowed are finite numbers >= 0")
    peak = weight.amax()
    return weight / peak if peak > 0 else weight


class _Basis:
    """An orthonormal basis that grows row by row, and the energy of every feature outside it.

    The energies are kept by subtraction. Where that cancels (the winner's energy fell by more than
    sqrt(eps) since it was last computed, geqp3's own criterion) all are computed afresh: at most a few
    times in a run, and hardly ever on real features.
    """

    def __init__(self, rows: Tensor, capacity: int) -> None:
        eps = torch.finfo(rows.dtype).eps
        self.rows = rows
        self.energy = torch.linalg.vector_norm(rows, dim=1).square()
        self._floor = self.energy * (RANK_TOLERANCE * eps) ** 2
        self._exact = self.energy  # as last computed without subtraction
        self._stale = eps**0.5
        self._basis = rows.new_empty(min(capacity, *rows.shape), rows.shape[1])
        self._size = 0
        self._size_of_exact = 0

    def winner(self, weights: Tensor) -> int | None:
        """The row with the largest weighted energy; None when the rows of weight > 0 are explained."""
        index = _best(weights * self.energy)
        trusted = index is not None and bool(self.energy[index] > self._stale * self._exact[index])
        if trusted or self._size == self._size_of_exact:
            return index
        self._refresh()
        return _best(weights * self.energy)

    def add(self, index: int) -> None:
        """Grow by a row's residual, and take that direction's share from every energy."""
        residual = self._outside(self.rows[index])
        size = torch.linalg.vector_norm(residual)
        if self._size == len(self._basis) or size.square() <= self._floor[index]:
            return
        direction = residual / size
        self._basis[self._size] = direction
        self._size += 1
        self.energy = (self.energy - (self.rows @ direction).square()).clamp(min=0)

    def _outside(self, rows: Tensor) -> Tensor:
        basis = self._basis[: self._size]
        for _ in range(2):
            rows = rows - (rows @ basis.T) @ basis
        return rows

    def _refresh(self) -> None:
        energy = torch.linalg.vector_norm(self._outside(self.rows), dim=1).square()
        self.energy = self._exact = torch.where(energy > self._floor, energy, 0)
        self._size_of_exact = self._size


def _select(features: Tensor, k: int, weight: Tensor | None, first: int | Tensor | None) -> Tensor:
    rows = _rows(features)
    weights = _weights(weight, rows)
    start = None if first is None else _row_index(first, len(rows))
    basis = _Basis(rows, k)
    free = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    order: list[int] = []
    while len(order) < k:
        index = basis.winner(weights * free) if order or start is None else start
        if index is None:
            break
        basis.add(index)
        order.append(index)
        free[index] = False
    return _filled(order, free, weights, k)


def _best(scores: Tensor) -> int | None:
    """The lowest index among the best scores; None when nothing is left to explain."""
    best = scores.amax()
    if not best > 0:
        return None
    tie = 1 - TIE_TOLERANCE * torch.finfo(scores.dtype).eps
    return int((scores >= best * tie).byte().argmax())


def _filled(order: list[int], free: Tensor, weights: Tensor, k: int) -> Tensor:
    """``order``, filled up to ``k`` with free rows by falling weight, then by index."""
    chosen = torch.tensor(order, dtype=torch.long, device=weights.device)
    if len(order) == k:
        return chosen
    by_weight = torch.argsort(weights, descending=True, stable=True)
    return torch.cat([chosen, by_weight[free[by_weight]][: k - len(order)]])
