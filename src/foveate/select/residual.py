"""Greedy weighted residual selection: keep the row that the rows kept so far explain least.

With ``S`` the rows kept and ``P_S`` the orthogonal projector on their span, each step takes

    argmax_i  w_i * ||v_i - P_S v_i||^2 .

Scaling a row changes no span, so this is QR with column pivoting of the columns ``sqrt(w_i) v_i``
(LAPACK geqp3), pivoted Cholesky of their Gram matrix (pstrf), and greedy MAP of the determinantal
point process with that kernel.

The residual matrix is not formed. One orthonormal row ``q`` per step is enough:
``E_i <- E_i - (v_i . q)^2``, a single product with the features, O(N D); the kept rows are
orthogonalised twice, O(k D) ("twice is enough": Giraud, Langou, Rozloznik 2005).
"""

from numbers import Integral

import torch
from torch import Tensor

from foveate.errors import InvalidBudget, InvalidFeatures
from foveate.select.inputs import check_count, check_features, check_weight, stacked

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
    check_features(features, "[N, D] and [B, N, D]", 2, 3)
    n = features.shape[-2]
    check_count(k, n)
    check_weight(weight, features)
    if features.dim() == 2:
        return _select(features, k, weight, _row_index(first, n))
    starts = first if isinstance(first, Tensor) and first.dim() == 1 else [first] * len(features)
    if len(starts) != len(features):
        raise InvalidFeatures(f"first has {len(starts)} entries: allowed is one per batch item, {len(features)}")
    orders = [
        _select(item, k, None if weight is None else weight[b], _row_index(starts[b], n))
        for b, item in enumerate(features)
    ]
    return stacked(orders, k, features.device)


@torch.no_grad()
def residual_energy(features: Tensor, kept: Tensor) -> Tensor:
    """Reconstruction error along the way: ``||V - P_S V||_F^2 / ||V||_F^2`` after 0, 1, ... rows kept.

    Args:
        features: ``[N, D]``.
        kept: ``[k]`` integer row indices, in order of selection.

    Returns:
        ``[k + 1]`` float64, from 1 downwards; all zero where every feature is zero.

    Raises:
        InvalidFeatures: wrong shapes, NaN or infinite values, an index out of range.
    """
    check_features(features, "[N, D]", 2)
    if kept.dim() != 1 or kept.is_floating_point():
        raise InvalidFeatures(f"kept of shape {tuple(kept.shape)} and {kept.dtype}: allowed are [k] integers")
    basis = _Basis(_rows(features.double()), len(kept))
    path = [basis.total()]
    for index in kept:
        basis.add(_row_index(index, len(features)) or 0)
        path.append(basis.total())
    energies = torch.stack(path)
    return energies / energies[0] if energies[0] > 0 else energies


@torch.no_grad()
def optimal_energy(features: Tensor, k: int) -> Tensor:
    """The least reconstruction error any rank-0, 1, ..., k subspace leaves, relative to the total.

    The tails of the Gram spectrum (Eckart-Young): no choice of rows can do better.

    Args:
        features: ``[N, D]``.
        k: the largest rank, an int of 0 or more.

    Returns:
        ``[k + 1]`` float64, from 1 downwards; all zero where every feature is zero.

    Raises:
        InvalidFeatures: wrong shape, NaN or infinite values.
        InvalidBudget: ``k`` is negative or no int.
    """
    check_features(features, "[N, D]", 2)
    if isinstance(k, bool) or not isinstance(k, Integral) or k < 0:
        raise InvalidBudget(f"k={k!r}: allowed is an int of 0 or more")
    rows = _rows(features.double())
    gram = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
    spectrum = torch.linalg.eigvalsh(gram).clamp(min=0)  # ascending
    tails = torch.cat([spectrum.new_zeros(1), spectrum.cumsum(0)]).flip(0)
    tails = torch.nn.functional.pad(tails, (0, max(0, k + 1 - len(tails))))[: k + 1]
    return tails / tails[0] if tails[0] > 0 else tails


def _row_index(index: int | Tensor | None, n: int) -> int | None:
    if index is None:
        return None
    whole = not index.is_floating_point() if isinstance(index, Tensor) else isinstance(index, Integral)
    if not whole or (isinstance(index, Tensor) and index.numel() != 1) or not 0 <= int(index) < n:
        raise InvalidFeatures(f"row index {index!r}: allowed is an int from 0 to {n - 1}")
    return int(index)


def _rows(features: Tensor) -> Tensor:
    """Finite rows in the dtype of the computation, rescaled only where products would overflow or vanish."""
    rows = features if features.dtype == torch.float64 else features.float()
    low, high = torch.aminmax(rows)  # one pass; NaN wins
    peak = torch.maximum(high, -low)
    if not bool(torch.isfinite(peak)):
        raise InvalidFeatures("features hold NaN or infinite values: allowed are finite numbers")
    limit = torch.finfo(rows.dtype).max ** 0.4
    return rows / peak if peak > limit or 0 < peak < 1 / limit else rows


def _wide(device: torch.device) -> torch.dtype:
    """The dtype of what is kept once per row: Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _weights(weight: Tensor | None, rows: Tensor) -> Tensor:
    """``[N]`` weights, the largest 1."""
    if weight is None:
        return rows.new_ones(len(rows), dtype=_wide(rows.device))
    peak = weight.amax()
    return (weight / peak if peak > 0 else weight).to(rows.device, _wide(rows.device))


class _Basis:
    """An orthonormal basis that grows row by row, and every row's energy outside it.

    Energies are relative to the row's own, so that rows of all magnitudes are treated alike; the
    magnitudes are kept beside, in double.

    They are kept by subtraction, which cancels: an energy that fell by more than sqrt(eps) since it was
    last exact (geqp3's criterion) is uncertain. Where an uncertain row wins, or could win given what may
    have been lost, all energies are computed afresh: a few times in a run at most, on real features.
    """

    def __init__(self, rows: Tensor, capacity: int) -> None:
        self._eps = torch.finfo(rows.dtype).eps
        norms = torch.linalg.vector_norm(rows, dim=1, dtype=_wide(rows.device))
        norms = torch.where(norms > torch.finfo(rows.dtype).tiny, norms, 0)
        peak = norms.amax()
        self.magnitude = (norms / peak if peak > 0 else norms).square()  # [N], the largest 1
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
        basis = self._basis[: self._size]
        for _ in range(2):
            rows = rows - (rows @ basis.T) @ basis
        return rows

    def _refresh(self) -> None:
        residual = self._outside(self._rows * self._inverse[:, None])
        size = torch.linalg.vector_norm(residual, dim=1)
        self._energy = self._exact = torch.where(size > RANK_TOLERANCE * self._eps, size.square(), 0)
        self._size_of_exact = self._size


def _select(features: Tensor, k: int, weight: Tensor | None, first: int | None) -> Tensor:
    rows = _rows(features)
    weights = _weights(weight, rows)
    basis = _Basis(rows, k)
    free = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    order: list[int] = []
    while len(order) < k:
        index = basis.winner(weights * free) if order or first is None else first
        if index is None:
            break
        basis.add(index)
        order.append(index)
        free[index] = False
    return _filled(order, free, weights, k)


def _first_best(scores: Tensor, tie: float) -> int | None:
    """The lowest index among the best scores; None when nothing is left to explain."""
    best = scores.amax()
    return int((scores >= best * (1 - tie)).byte().argmax()) if best > 0 else None


def _filled(order: list[int], free: Tensor, weights: Tensor, k: int) -> Tensor:
    """``order``, filled up to ``k`` with free rows by falling weight, then by index."""
    chosen = torch.tensor(order, dtype=torch.long, device=weights.device)
    if len(order) == k:
        return chosen
    by_weight = torch.argsort(weights, descending=True, stable=True)
    return torch.cat([chosen, by_weight[free[by_weight]][: k - len(order)]])
