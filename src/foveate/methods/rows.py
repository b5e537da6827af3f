"""The rows that a subspace is built from: as long as they are, or all of one length."""

from torch import Tensor
from torch.nn.functional import normalize

from foveate.methods.base import precise

ROWS = ("raw", "unit")


def rows_of(features: Tensor, rows: str) -> Tensor:
    """``features [N, D]`` as they are (``raw``), or divided by their l2 norms (``unit``; zero rows stay)."""
    return features if rows == "raw" else normalize(precise(features), dim=1)
