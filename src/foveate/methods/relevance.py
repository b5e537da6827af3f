"""From a question's embeddings to one relevance per visual token."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from foveate.methods.base import widest
from foveate.select.inputs import precise

POOLS = ("max", "mean", "pooled")
LEAST = 1e-30  # a relevance of 0 everywhere is constant, too


def question_relevance(
    features: Tensor, question: Tensor, pool: str = "max", asked: Tensor | None = None
) -> Tensor | None:
    """Cosine of every visual token with the question, in the language model's embedding space.

    Args:
        features: ``[..., N, D]``.
        question: ``[..., M, D]``.
        pool: over the question's tokens: ``max`` or ``mean`` of the cosines, or the cosine with the mean
            embedding (``pooled``).
        asked: ``[..., M]`` bool, which of the question's tokens count; None for all.

    Returns:
        ``[..., N]`` in [-1, 1], a zero row counting as 0; the same number everywhere for an image of whose
        question nothing counts. None where ``M`` is 0.
    """
    if question.shape[-2] == 0:
        return None
    unit = normalize(precise(features), dim=-1)
    question = question.to(unit)
    if pool == "max":
        cosines = unit @ normalize(question, dim=-1).mT
        if asked is not None:
            cosines = torch.where(asked[..., None, :], cosines, -torch.inf)
        return cosines.amax(dim=-1)
    direction = _mean(normalize(question, dim=-1) if pool == "mean" else question, asked)
    return (unit @ (direction if pool == "mean" else normalize(direction, dim=-1)).mT)[..., 0]


def scaled(relevance: Tensor) -> Tensor:
    """``[..., N]`` relevance scaled to [0, 1] over each image, `widest`; 0 where it is constant."""
    above, span, constant = above_least(relevance)
    return above / span.masked_fill(constant, torch.inf)


def above_least(relevance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``relevance [..., N]`` less its least of each image, all in `widest`.

    Returns:
        ``[..., N]``, the largest of them ``[..., 1]``, and ``[..., 1]`` bool, whether that is rounding alone. It
        is not where the relevance holds NaN or infinite values: what is computed of it then holds NaN.
    """
    wide = widest(relevance)
    low, high = torch.aminmax(wide, dim=-1, keepdim=True)
    span = high - low
    noise = torch.rsub(high.abs(), LEAST, alpha=-8 * torch.finfo(relevance.dtype).eps)
    return wide - low, span, span < noise


def powered(values: Tensor, exponent: float) -> Tensor:
    """``values [..., N]`` to a power, the largest made 1: in double, so that strong powers do not vanish."""
    values = widest(values)
    return (values / values.amax(dim=-1, keepdim=True)) ** exponent


def _mean(rows: Tensor, asked: Tensor | None) -> Tensor:
    """``[..., 1, D]``: the mean of those of ``rows [..., M, D]`` that count, 0 where none does."""
    if asked is None:
        return rows.mean(dim=-2, keepdim=True)
    shares = asked / asked.sum(dim=-1, keepdim=True).clamp(min=1)
    return shares.to(rows)[..., None, :] @ rows
