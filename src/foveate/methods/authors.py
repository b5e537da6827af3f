"""Where the authors' own code breaks: ``faithful=True`` refuses what it has no answer for."""

import torch
from torch import Tensor

from foveate.errors import InvalidBudget, InvalidFeatures


def refuse_zero_rows(rows: Tensor) -> None:
    """Refuse ``rows [N, D]`` whose division by their length is NaN.

    Raises:
        InvalidFeatures: a row is zero.
    """
    zero = ~(rows != 0).any(dim=1)
    if bool(zero.any()):
        raise InvalidFeatures(
            f"row {int(zero.byte().argmax())} is zero, and the authors' code divides by its length: allowed with "
            "faithful=True are rows that are not zero"
        )


def refuse_beyond_rank(rows: Tensor, order: Tensor) -> None:
    """Refuse a selection ``order [k]`` with directions already taken: its determinant is 0, its next step NaN.

    Raises:
        InvalidBudget: the rows selected are of a lower rank than k.
    """
    unit = torch.nn.functional.normalize(rows[order].cpu().double(), dim=1)
    rank = int(torch.linalg.matrix_rank(unit))
    if rank < len(order):
        raise InvalidBudget(
            f"k={len(order)}: allowed with faithful=True is at most the rank of the features, {rank} of those "
            "selected; the authors' code goes on with roots of negative rounding errors"
        )


def refuse_repeats(rows: Tensor, order: Tensor) -> None:
    """Refuse a selection ``order [k]`` with two parallel rows: the authors' code picks one of them twice.

    Raises:
        InvalidBudget: the rows selected have fewer than k directions.
    """
    unit = torch.nn.functional.normalize(rows[order].cpu().double(), dim=1)
    nearest = (unit @ unit.T).tril(diagonal=-1).amax(dim=1)
    repeated = nearest[1:] > 1 - 8 * torch.finfo(unit.dtype).eps
    if bool(repeated.any()):
        directions = 1 + int(repeated.byte().argmax())
        raise InvalidBudget(
            f"k={len(order)}: allowed with faithful=True is at most the number of directions, {directions} here; "
            "the authors' code goes on with tokens that it has already"
        )
