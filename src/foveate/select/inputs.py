"""What every engine asks of its inputs."""

from numbers import Integral

import torch
from torch import Tensor

from foveate.errors import InvalidBudget, InvalidFeatures
from foveate.select.checks import refuse_if


def check_features(features: Tensor, allowed: str, *dims: int) -> None:
    """Check a tensor's shape and kind of numbers.

    Raises:
        InvalidFeatures: no tensor of real numbers, another number of dimensions, or no rows or columns.
    """
    if not isinstance(features, Tensor):
        raise InvalidFeatures(f"features of type {type(features).__name__}: allowed is a tensor {allowed}")
    if features.is_complex():
        raise InvalidFeatures(f"features of {features.dtype}: allowed are real numbers")
    if features.dim() not in dims or features.shape[-2] == 0 or features.shape[-1] == 0:
        raise InvalidFeatures(f"features of shape {tuple(features.shape)}: allowed are {allowed}, none of them 0")


def check_count(k: int, n: int) -> None:
    """Check a number of rows to select out of ``n``.

    Raises:
        InvalidBudget: ``k`` is not an int in ``[1, n]``.
    """
    if isinstance(k, bool) or not isinstance(k, Integral) or not 1 <= k <= n:
        raise InvalidBudget(f"k={k!r}: allowed is an int from 1 to the {n} rows at hand")


def check_weight(weight: Tensor | None, features: Tensor) -> None:
    """Check one weight per row.

    Raises:
        InvalidFeatures: another shape, NaN, infinite or negative values.
    """
    if weight is None:
        return
    if not isinstance(weight, Tensor) or weight.shape != features.shape[:-1]:
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise InvalidFeatures(f"weight of shape {shape}: allowed is {tuple(features.shape[:-1])}, one per row")
    check_scores("weight", weight)


def check_scores(name: str, scores: Tensor) -> None:
    """Check numbers of any shape.

    Raises:
        InvalidFeatures: NaN, infinite or negative values.
    """
    refuse_if(
        ~((scores >= 0) & (scores < torch.inf)),
        lambda: InvalidFeatures(f"{name} holds NaN, infinite or negative values: allowed are finite numbers >= 0"),
    )


def check_finite(name: str, values: Tensor) -> None:
    """Check numbers of any shape.

    Raises:
        InvalidFeatures: NaN or infinite values.
    """
    refuse_if(
        ~torch.isfinite(values),
        lambda: InvalidFeatures(f"{name} holds NaN or infinite values: allowed are finite numbers"),
    )


def precise(values: Tensor) -> Tensor:
    """``values`` in the dtype of the computation: float64 stays, all else becomes float32."""
    return values if values.dtype == torch.float64 else values.float()
