"""From a question's embeddings to one relevance per visual token."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from foveate.errors import InvalidFeatures
from foveate.methods.base import precise

POOLS = ("max", "mean", "pooled")


def question_relevance(features: Tensor, question: Tensor, pool: str = "max") -> Tensor | None:
    """Cosine of every visual token with the question, in the language model's embedding space.

    Args:
        features: ``[N, D]``.
        question: ``[M, D]``.
        pool: over the question's tokens: ``max`` or ``mean`` of the cosines, or the cosine with the mean
            embedding (``pooled``).

    Returns:
        ``[N]`` in [-1, 1], a zero row counting as 0; None where the question is empty.
    """
    if len(question) == 0:
        return None
    features = precise(features)
    question = question.to(features)
    if pool == "pooled":
        question = question.mean(dim=0, keepdim=True)
    cosines = normalize(features, dim=1) @ normalize(question, dim=1).T
    return cosines.amax(dim=1) if pool == "max" else cosines.mean(dim=1)


def scaled(relevance: Tensor) -> Tensor | None:
    """``[N]`` relevance scaled to [0, 1] over the image; None where it is constant and says nothing.

    Raises:
        InvalidFeatures: NaN or infinite values.
    """
    low, high = relevance.amin(), relevance.amax()
    if not bool(torch.isfinite(high - low)):
        raise InvalidFeatures("the relevance holds NaN or infinite values: allowed are finite numbers")
    noise = 8 * torch.finfo(relevance.dtype).eps * torch.maximum(low.abs(), high.abs())
    return (relevance - low) / (high - low) if high - low > noise else None


def powered(values: Tensor, exponent: float) -> Tensor:
    """``values [N]`` (> 0) to a power, the largest made 1: in double, so that strong powers do not vanish."""
    return (values / values.amax()).cpu().double() ** exponent
