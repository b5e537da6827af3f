"""Chosen rows that take in their nearest neighbours, and one more row for all that was not chosen."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from foveate.errors import InvalidFeatures
from foveate.select.engine import engine
from foveate.select.rows import check_distinct, check_rows, check_shares, rest_of

NEIGHBOURS = 32


@engine
def merge_neighbours(
    keys: Tensor, weights: Tensor, chosen: Tensor, neighbours: int = NEIGHBOURS, *, faithful: bool = False
) -> Tensor:
    """What chosen rows become: ``x_i + sum over the nearest j of w_j x_j``; the last, ``sum of w_j x_j``.

    The nearest are those of the largest cosine of keys, among all other rows, chosen or not; ties go to the
    lowest index. The last sum is over all rows that are not chosen.

    Args:
        keys: ``[N, d]``. float64 is computed in float64, all else in float32.
        weights: ``[N]``, >= 0.
        chosen: ``[m]`` indices, distinct unless ``faithful``.
        neighbours: how many; all others where there are fewer, unless ``faithful``.
        faithful: repeats as in the authors' code: each is a neighbour of the others, and for each one the
            lowest row that is not chosen is lost.

    Returns:
        ``[m + 1, N]`` shares: ``shares @ states`` is what they become, in the order of ``chosen``.

    Raises:
        InvalidFeatures: wrong shapes, NaN or infinite values, a negative weight, repeats; with ``faithful``,
            fewer others than ``neighbours``.

    Source: LLaVA-PruMerge (arXiv 2403.15388).
    """
    keys = check_rows("keys", keys)
    n, m = len(keys), len(chosen)
    weights = check_shares("weights", weights, n).to(keys)
    if not faithful:
        check_distinct("chosen", chosen, n)
    if faithful and n - 1 < neighbours:
        raise InvalidFeatures(f"{n} rows with faithful=True: allowed are {neighbours + 1} or more")
    rest = rest_of(chosen, n) if not faithful else _rest_of_repeats(chosen, n)
    others = torch.cat([chosen, rest])
    unit = normalize(keys, dim=1)
    alike = unit[chosen] @ unit[others].T
    alike.fill_diagonal_(float("-inf"))  # the first m of the others are the chosen themselves
    order = others.argsort(stable=True)  # so that ties go to the lowest index
    nearest = alike[:, order].argsort(dim=1, descending=True, stable=True)[:, : min(neighbours, n - 1)]
    found = others[order][nearest]
    shares = keys.new_zeros(m + 1, n)
    shares[:-1].scatter_add_(1, found, weights[found])
    shares[torch.arange(m, device=keys.device), chosen] += 1
    shares[-1, rest] = weights[rest]
    return shares


def _rest_of_repeats(chosen: Tensor, n: int) -> Tensor:
    left = torch.ones(n, dtype=torch.bool, device=chosen.device).index_fill(0, chosen, False).nonzero().flatten()
    return left[len(left) - (n - len(chosen)) :]


@engine
def count_outliers(scores: Tensor) -> int:
    """How many of ``scores [N]`` lie above the third quartile by more than 1.5 interquartile ranges.

    PruMerge's adaptive count, of one image by itself; 0 where scores are constant. In float32, quartiles
    interpolated linearly, as the authors have it.

    Raises:
        InvalidFeatures: another shape, NaN, infinite or negative values.
    """
    scores = check_shares("scores", scores, len(scores)).float()
    first, third = torch.quantile(scores, scores.new_tensor([0.25, 0.75]))
    return int((scores > third + 1.5 * (third - first)).sum())
