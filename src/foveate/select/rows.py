"""What the merging engines ask of their arguments."""

import torch
from torch import Tensor

from foveate.errors import InvalidFeatures


def check_rows(name: str, rows: Tensor) -> Tensor:
    """``rows [N, d]`` in the dtype of the computation: float64 stays, all else becomes float32.

    Raises:
        InvalidFeatures: another shape, NaN or infinite values.
    """
    if rows.dim() != 2 or not len(rows):
        raise InvalidFeatures(f"{name} of shape {tuple(rows.shape)}: allowed is [N, d] with N of 1 or more")
    return _finite(name, rows)


def check_scores(name: str, scores: Tensor, n: int) -> Tensor:
    """``scores [N]`` in the dtype of the computation.

    Raises:
        InvalidFeatures: another shape, NaN, infinite or negative values.
    """
    if scores.shape != (n,):
        raise InvalidFeatures(f"{name} of shape {tuple(scores.shape)}: allowed is {(n,)}, one per row")
    if bool((scores < 0).any()):
        raise InvalidFeatures(f"{name} holds {float(scores.min())}: allowed are numbers of 0 or more")
    return _finite(name, scores)


def check_distinct(name: str, indices: Tensor, n: int) -> None:
    """Check ``indices [m]`` of ``n`` rows.

    Raises:
        InvalidFeatures: another shape, an index out of range, or one that is given twice.
    """
    inside = indices.dim() == 1 and bool(((indices >= 0) & (indices < n)).all())
    if not inside or len(torch.unique(indices)) != len(indices):
        raise InvalidFeatures(f"{name}={indices.tolist()}: allowed are distinct indices from 0 to {n - 1}")


def _finite(name: str, values: Tensor) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        raise InvalidFeatures(f"{name} holds NaN or infinite values: allowed are finite numbers")
    return values if values.dtype == torch.float64 else values.float()
