"""Clusters around peaks of density."""

import torch
from torch import Tensor

from foveate.select.engine import engine


@engine
def density_peaks(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Centres of ``count`` clusters, and the cluster of every row.

    A row's density is ``exp(-mean of the squared distances to its nearest rows)``, as many as there are clusters,
    itself included; its distance is that to the nearest denser row (the largest of all for the densest). Centres
    are the rows of largest density times distance, in that order; each row belongs to the nearest centre.

    Args:
        features: ``[N, D]``; distances are divided by ``sqrt(D)``.
        count: ``1 <= count <= N``.

    Returns:
        ``[count]`` indices of the centres and ``[N]`` indices into them, ties to the lowest.

    Source: DPC-kNN (Du et al. 2016), as SparseVLM (arXiv 2410.04417) uses it.
    """
    rows = features if features.dtype == torch.float64 else features.float()
    distance = torch.cdist(rows[None], rows[None], compute_mode="donot_use_mm_for_euclid_dist")[0]
    distance = distance / rows.shape[1] ** 0.5
    nearest = distance.topk(count, largest=False).values
    density = (-nearest.square().mean(dim=1)).exp()
    place = torch.arange(len(rows), device=rows.device)
    other, own = density[None], density[:, None]
    denser = (other > own) | ((other == own) & (place[None] < place[:, None]))
    gap = torch.where(denser, distance, distance.amax()).amin(dim=1)
    centres = torch.argsort(gap * density, descending=True, stable=True)[:count]
    assigned = distance[:, centres].argmin(dim=1)
    assigned[centres] = torch.arange(count, device=rows.device)
    return centres, assigned
