"""Where the authors' own code breaks: ``faithful=True`` refuses what it has no answer for."""

import torch
from torch import Tensor

from foveate.errors import InvalidBudget, InvalidFeatures
from foveate.methods.base import widest
from foveate.select.checks import refuse_if


def refuse_zero_rows(rows: Tensor) -> None:
    """Refuse ``rows [..., N, D]`` whose division by their length is NaN.

    Raises:
        InvalidFeatures: a row is zero.
    """
    zero = ~(rows != 0).any(dim=-1)
    refuse_if(
        zero,
        lambda: InvalidFeatures(
            f"row {int(zero.byte().flatten().argmax()) % rows.shape[-2]} is zero, and the authors' code divides "
            "by its length: allowed with faithful=True are rows that are not zero"
        ),
    )


def refuse_beyond_rank(rows: Tensor, order: Tensor) -> None:
    """Refuse an ``order [..., k]`` with directions already taken: its determinant is 0, its next step NaN.

    Raises:
        InvalidBudget: the rows selected are of a lower rank than k.
    """
    rank, k = torch.linalg.matrix_rank(_selected(rows, order)), order.shape[-1]
    refuse_if(
        rank < k,
        lambda: InvalidBudget(
            f"k={k}: allowed with faithful=True is at most the rank of the features, {int(rank.min())} of those "
            "selected; the authors' code goes on with roots of negative rounding errors"
        ),
    )


def refuse_repeats(rows: Tensor, order: Tensor) -> None:
    """Refuse a selection ``order [..., k]`` with two parallel rows: the authors' code picks one of them twice.

    Raises:
        InvalidBudget: the rows selected have fewer than k directions.
    """
    unit, k = _selected(rows, order), order.shape[-1]
    nearest = (unit @ unit.mT).tril(diagonal=-1).amax(dim=-1)
    repeated = nearest[..., 1:] > 1 - 8 * torch.finfo(unit.dtype).eps
    refuse_if(
        repeated,
        lambda: InvalidBudget(
            f"k={k}: allowed with faithful=True is at most the number of directions, "
            f"{1 + min(int(row.argmax()) for row in repeated.byte().view(-1, k - 1) if row.any())} here; "
            "the authors' code goes on with tokens that it has already"
        ),
    )


def _selected(rows: Tensor, order: Tensor) -> Tensor:
    """``[..., k, D]``: the rows selected, of length 1."""
    chosen = widest(rows.take_along_dim(order[..., None], dim=-2)).nan_to_num()  # a check to come refuses NaN
    return torch.nn.functional.normalize(chosen, dim=-1)
