"""Greedy weighted residual selection: keep the row that the rows kept so far explain least.

With ``S`` the rows kept and ``P_S`` the orthogonal projector on their span, each step takes

    argmax_i  w_i * ||v_i - P_S v_i||^2 .

Scaling a row changes no span, so this is QR with column pivoting of the columns ``sqrt(w_i) v_i``
(LAPACK geqp3), pivoted Cholesky of their Gram matrix (pstrf), and greedy MAP of the determinantal
point process with that kernel.
"""

from numbers import Integral
from typing import Literal, get_args

import torch
from torch import Tensor

from foveate.errors import InvalidBudget, InvalidFeatures, InvalidOption
from foveate.select.inputs import check_count, check_features, check_weight, stacked
from foveate.select.residual_columns import order_by_columns
from foveate.select.residual_reference import Basis, order_by_steps
from foveate.select.residual_rows import filled, relative, scaled

Implementation = Literal["auto", "reference", "columns", "triton"]


@torch.no_grad()
def select_residual(
    features: Tensor,
    k: int,
    *,
    weight: Tensor | None = None,
    first: int | Tensor | None = None,
    impl: Implementation = "auto",
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
        impl: how to compute it; equal but for near ties. ``reference`` runs anywhere, ``columns`` on a CPU and
            ``triton`` on a GPU, both faster; ``auto`` takes the fastest that can run.

    Returns:
        ``[k]`` or ``[B, k]`` int64, in order of selection.

    Raises:
        InvalidFeatures: wrong shapes, NaN or infinite values, a negative weight, ``first`` out of range.
        InvalidBudget: ``k`` is not an int in ``[1, N]``.
        InvalidOption: ``impl`` is unknown, or cannot run on the device of the features.

    Source: SPARE (arXiv 2606.18681) and ResPrune (arXiv 2603.21105), with weights as their methods set.
    """
    check_features(features, "[N, D] and [B, N, D]", 2, 3)
    n = features.shape[-2]
    check_count(k, n)
    check_weight(weight, features)
    chosen = _implementation(impl, features)
    items = features if features.dim() == 3 else features[None]
    weights = weight if weight is None or features.dim() == 3 else weight[None]
    indices = _row_indices(first, len(items), features.dim() == 3, n)
    orders = _together(items, k, weights, indices, impl) if chosen == "triton" and len(items) else None
    if orders is None:
        each = [None] * len(items) if weights is None else weights
        orders = stacked(
            [_select(*one, k, chosen) for one in zip(items, each, indices, strict=True)], k, features.device
        )
    return orders if features.dim() == 3 else orders[0]


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
    basis = Basis(*scaled(features.double()), len(kept))
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
    rows, _ = scaled(features.double())
    gram = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
    spectrum = torch.linalg.eigvalsh(gram).clamp(min=0)  # ascending
    tails = torch.cat([spectrum.new_zeros(1), spectrum.cumsum(0)]).flip(0)
    tails = torch.nn.functional.pad(tails, (0, max(0, k + 1 - len(tails))))[: k + 1]
    return tails / tails[0] if tails[0] > 0 else tails


def _row_indices(first: int | Tensor | None, batch: int, several: bool, n: int) -> list[int | None]:
    if not (several and isinstance(first, Tensor) and first.dim() == 1):
        return [_row_index(first, n)] * batch
    if len(first) != batch:
        raise InvalidFeatures(f"first has {len(first)} entries: allowed is one per batch item, {batch}")
    return [_row_index(index, n) for index in first.tolist()]  # one copy from a GPU, not one per item


def _row_index(index: int | Tensor | None, n: int) -> int | None:
    if index is None:
        return None
    whole = not index.is_floating_point() if isinstance(index, Tensor) else isinstance(index, Integral)
    if not whole or (isinstance(index, Tensor) and index.numel() != 1) or not 0 <= int(index) < n:
        raise InvalidFeatures(f"row index {index!r}: allowed is an int from 0 to {n - 1}")
    return int(index)


def _implementation(impl: Implementation, features: Tensor) -> Implementation:
    device = features.device
    if impl not in get_args(Implementation):
        raise InvalidOption(f"impl={impl!r}: allowed are {', '.join(get_args(Implementation))}")
    if impl == "columns" and device.type != "cpu":
        raise InvalidOption(
            f"impl={impl!r} on {device}: it runs on a CPU alone; allowed here are auto, reference, triton"
        )
    if impl == "triton" or (impl == "auto" and device.type == "cuda"):
        fault = _triton_fault(features)
        if fault is not None and impl == "triton":
            others = "auto, reference, columns" if device.type == "cpu" else "auto, reference"
            raise InvalidOption(f"impl={impl!r} cannot run: {fault}; allowed here are {others}")
        return "triton" if fault is None else "reference"
    return impl if impl != "auto" else "columns" if device.type == "cpu" else "reference"


def _triton_fault(features: Tensor) -> str | None:
    try:
        from foveate.select import residual_triton  # here, so that nobody else needs Triton
    except (ImportError, AttributeError) as error:  # none, or one too old to have what is imported of it
        return f"Triton cannot be imported ({error})"
    return residual_triton.fault(features)


def _together(
    items: Tensor, k: int, weights: Tensor | None, first: list[int | None], impl: Implementation
) -> Tensor | None:
    """A batch by Triton; None where the GPU has too little for its kernel and ``impl`` leaves the choice."""
    from foveate.select import residual_triton

    starts = None if first[0] is None else torch.tensor(first, device=items.device)
    try:
        return residual_triton.select_by_triton(items, k, weights, starts)
    except InvalidOption:
        if impl == "triton":
            raise
        return None


def _select(features: Tensor, weight: Tensor | None, first: int | None, k: int, impl: Implementation) -> Tensor:
    rows, norms = scaled(features)
    weights = relative(weight, rows)
    ordered = order_by_columns if impl == "columns" else order_by_steps
    return filled(ordered(rows, norms, k, weights, first), weights, k)
