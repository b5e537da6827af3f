"""What the merging engines ask of their arguments."""

import torch
from torch import Tensor

from foveate.errors import InvalidFeatures
from foveate.select.checks import is_no_selection, refuse_if
from foveate.select.inputs import check_finite, precise


def check_rows(name: str, rows: Tensor) -> Tensor:
    """``rows [N, d]`` in the dtype of the computation: float64 stays, all else becomes float32.

    Raises:
        InvalidFeatures: another shape, NaN or infinite values.
    """
    if rows.dim() != 2 or not len(rows):
        raise InvalidFeatures(f"{name} of shape {tuple(rows.shape)}: allowed is [N, d] with N of 1 or more")
    check_finite(name, rows)
    return precise(rows)


def check_shares(name: str, scores: Tensor, n: int) -> Tensor:
    """``scores [N]`` in the dtype of the computation.

    Raises:
        InvalidFeatures: another shape, NaN, infinite or negative values.
    """
    if scores.shape != (n,):
        raise InvalidFeatures(f"{name} of shape {tuple(scores.shape)}: allowed is {(n,)}, one per row")
    refuse_if(
        scores < 0,
        lambda: InvalidFeatures(f"{name} holds {float(scores.min())}: allowed are numbers of 0 or more"),
    )
    check_finite(name, scores)
    return precise(scores)


def check_distinct(name: str, indices: Tensor, n: int) -> None:
    """Check ``indices [m]`` of ``n`` rows.

    Raises:
        InvalidFeatures: another shape, an index out of range, or one that is given twice.
    """
    if indices.dim() != 1:
        raise InvalidFeatures(f"{name} of shape {tuple(indices.shape)}: allowed is [m]")
    if len(indices):
        words = f"allowed are distinct indices from 0 to {n - 1}"
        refuse_if(is_no_selection(indices, n), lambda: InvalidFeatures(f"{name}={indices.tolist()}: {words}"))


def rest_of(chosen: Tensor, n: int) -> Tensor:
    """``[n - m]``, ascending: the rows of ``n`` that are not among ``chosen [m]``, which are distinct."""
    taken = torch.zeros(n, dtype=torch.bool, device=chosen.device).index_fill(0, chosen, True)
    return taken.byte().argsort(stable=True)[: n - len(chosen)]
