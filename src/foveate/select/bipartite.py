"""Bipartite soft matching: each of every second row joins the most alike of the others."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from foveate.errors import InvalidBudget, InvalidFeatures
from foveate.select.checks import refuse_if
from foveate.select.engine import engine
from foveate.select.inputs import check_count
from foveate.select.rows import check_rows, rest_of


@engine
def merge_bipartite(keys: Tensor, k: int, *, faithful: bool = False) -> tuple[Tensor, Tensor]:
    """Join rows until ``k`` are left, and say where they stand and what they are the mean of.

    Rows in odd places are A, those in even places B. Each of A is matched with the row of B whose key has the
    largest cosine; the A of the largest cosines join theirs. Once all of A have, the rows left are counted off
    anew, with the mean keys of what has been joined. Ties go to the lowest index.

    Args:
        keys: ``[N, d]``. float64 is computed in float64, all else in float32.
        k: how many rows to leave, ``1 <= k <= N``.
        faithful: one round alone, and no zero keys, as the authors' code needs it.

    Returns:
        Places ``[k]``, ascending: those of B that others joined stay where they are. ``[k, N]`` shares: row i
        of ``shares @ states`` is the mean of all that joined at place i.

    Raises:
        InvalidFeatures: wrong shapes, NaN or infinite values; with ``faithful``, a zero key.
        InvalidBudget: ``k`` is not an int in ``[1, N]``; with ``faithful``, below ``N - N // 2``.

    Source: ToMe (arXiv 2210.09461), ``bipartite_soft_matching`` with a class token that is never merged.
    """
    keys = check_rows("keys", keys)
    n = len(keys)
    check_count(k, n)
    if faithful:
        _check_faithful(keys, k)
    owner = places = torch.arange(n, device=keys.device)
    while (left := len(places)) > k:
        owner, gone = _joined(keys, owner, places, min(left - k, left // 2))
        places = places[rest_of(gone, left)]
    return places, _means(owner, places, keys.dtype)


def _joined(keys: Tensor, owner: Tensor, places: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """``[N]``: the place each row belongs to once ``count`` of ``places`` have joined others; which these are."""
    unit = normalize(_means(owner, places, keys.dtype) @ keys, dim=1)
    sources, targets = places[1::2], places[0::2]
    best, nearest = (unit[1::2] @ unit[0::2].T).max(dim=1)
    joining = torch.argsort(best, descending=True, stable=True)[:count]
    moved = torch.arange(len(owner), device=owner.device)
    moved[sources[joining]] = targets[nearest[joining]]
    return moved[owner], 2 * joining + 1


def _means(owner: Tensor, places: Tensor, dtype: torch.dtype) -> Tensor:
    members = (places[:, None] == owner).to(dtype)
    return members / members.sum(dim=1, keepdim=True)


def _check_faithful(keys: Tensor, k: int) -> None:
    n = len(keys)
    if k < n - n // 2:
        raise InvalidBudget(
            f"k={k} of {n} with faithful=True: allowed is {n - n // 2} or more, what one round leaves"
        )
    zero = (keys == 0).all(dim=1)
    refuse_if(
        zero,
        lambda: InvalidFeatures(
            f"keys[{int(zero.long().argmax())}] is zero with faithful=True: allowed is faithful=False"
        ),
    )
