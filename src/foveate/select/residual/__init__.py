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

from foveate.errors import InvalidFeatures, InvalidOption
from foveate.select.checks import refuse_if
from foveate.select.engine import engine
from foveate.select.inputs import check_count, check_features, check_weight
from foveate.select.residual.columns import order_by_columns
from foveate.select.residual.reference import order_by_steps
from foveate.select.residual.rows import filled, relative, scaled

Implementation = Literal["auto", "reference", "columns", "triton"]


@engine
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
    starts = _first_rows(first, items)
    orders = _together(items, k, weights, starts, impl) if chosen == "triton" and len(items) else None
    if orders is None:
        orders = _one_by_one(items, k, weights, starts, chosen)
    return orders if features.dim() == 3 else orders[0]


def _first_rows(first: int | Tensor | None, items: Tensor) -> Tensor | None:
    """``[B]`` rows to start with, in range, where ``items [B, N, D]`` lie."""
    if first is None:
        return None
    batch, n = items.shape[:2]
    whole = not first.is_floating_point() if isinstance(first, Tensor) else isinstance(first, Integral)
    if not whole or (isinstance(first, Tensor) and first.shape not in ((), (1,), (batch,))):
        raise InvalidFeatures(f"first={first!r}: allowed is an int from 0 to {n - 1}, or one per batch item")
    rows = torch.as_tensor(first).to(items.device, torch.long).expand(batch)
    refuse_if(
        (rows < 0) | (rows >= n),
        lambda: InvalidFeatures(f"first={rows.tolist()}: allowed are rows from 0 to {n - 1}"),
    )
    return rows.clamp(0, n - 1)


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
        from foveate.select.residual import triton  # here, so that nobody else needs Triton
    except (ImportError, AttributeError) as error:  # none, or one too old to have what is imported of it
        return f"Triton cannot be imported ({error})"
    return triton.fault(features)


def _together(
    items: Tensor, k: int, weights: Tensor | None, first: Tensor | None, impl: Implementation
) -> Tensor | None:
    """A batch by Triton; None where the GPU has too little for its kernel and ``impl`` leaves the choice."""
    from foveate.select.residual import triton

    try:
        return triton.select_by_triton(items, k, weights, first)
    except InvalidOption:
        if impl == "triton":
            raise
        return None


def _one_by_one(
    items: Tensor, k: int, weights: Tensor | None, first: Tensor | None, impl: Implementation
) -> Tensor:
    """A batch by steps that the host decides."""
    ordered = order_by_columns if impl == "columns" else order_by_steps
    starts = [None] * len(items) if first is None else first.tolist()
    orders = torch.empty(len(items), k, dtype=torch.long, device=items.device)
    for item, (features, start) in enumerate(zip(items, starts, strict=True)):
        rows, norms = scaled(features)
        weight = relative(None if weights is None else weights[item], rows)
        orders[item] = filled(ordered(rows, norms, k, weight, start), weight, k)
    return orders
