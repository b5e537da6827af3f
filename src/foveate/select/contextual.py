"""Contextual tokens: evenly spaced ones that take in the rest, each from the one most alike."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from foveate.errors import InvalidBudget
from foveate.select.engine import engine
from foveate.select.rows import check_distinct, check_rows, rest_of


@engine
def merge_contextual(
    keys: Tensor, dominant: Tensor, count: int, *, faithful: bool = False
) -> tuple[Tensor, Tensor]:
    """Choose ``count`` targets among the rows that are not dominant, and share out all others between them.

    Of the R rows that are not dominant, in order, every ``R // count``-th is a target. Each of the others
    belongs to the target whose key has the largest cosine with its own, the first of equal ones. What a target
    becomes is ``x_target + mean of the rows that belong to it``: a sum of two, as the authors have it.

    Args:
        keys: ``[N, d]``. float64 is computed in float64, all else in float32.
        dominant: ``[m]``, distinct indices of the rows that stay as they are.
        count: targets, 0 to ``N - m``.
        faithful: zero keys and a count of 0 as in the authors' code: a target of a zero key takes in all.

    Returns:
        Targets ``[count]``, ascending, and ``[count, N]`` shares: ``shares @ states`` is what they become.

    Raises:
        InvalidFeatures: wrong shapes, NaN or infinite keys, repeated indices.
        InvalidBudget: a count outside the above; with ``faithful``, 0.

    Source: VisionZip (arXiv 2412.04467).
    """
    keys = check_rows("keys", keys)
    check_distinct("dominant", dominant, len(keys))
    rest = rest_of(dominant, len(keys))
    if not int(faithful) <= count <= len(rest):
        least = f"{int(faithful)} to the {len(rest)} rows that are not dominant"
        raise InvalidBudget(f"count={count!r} with faithful={faithful}: allowed is {least}")
    if count == 0:
        return rest[:0], keys.new_zeros(0, len(keys))
    targets = rest[:: len(rest) // count][:count]
    merged = rest_of(torch.cat([dominant, targets]), len(keys))
    # The authors' division makes a zero key NaN, which argmax takes for the largest.
    unit = keys / torch.linalg.vector_norm(keys, dim=1, keepdim=True) if faithful else normalize(keys, dim=1)
    nearest = (unit[merged] @ unit[targets].T).argmax(dim=1)
    shares = keys.new_zeros(count, len(keys))
    place = torch.arange(count, device=keys.device)
    members = (nearest == place[:, None]).to(keys)
    shares[:, merged] = members / members.sum(dim=1, keepdim=True).clamp(min=1)
    shares[place, targets] = 1
    return targets, shares
