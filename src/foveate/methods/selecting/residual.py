"""What methods of greedy residual selection share: `rank`, written once."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import normalize

from foveate.methods.base import Method
from foveate.methods.relevance import question_relevance
from foveate.select import select_residual
from foveate.select.inputs import precise
from foveate.tokens import Signal, VisualTokens

ROWS = ("raw", "unit")


@dataclass(frozen=True)
class Residual(Method):
    """A method that keeps the row of the largest weighted residual energy, again and again.

    What it leaves open are the rows, their weights, the row to start with, and what it refuses.
    """

    complexity: ClassVar[str] = "O(k N D)"
    nested: ClassVar[bool] = True

    def rank(self, tokens: VisualTokens, k: int) -> Tensor:
        """``[..., k]`` in order of selection, by `select_residual`."""
        method = self.settled(tokens.signals)
        weight, first = method.weight(tokens), method.first(tokens)
        order = select_residual(method.vectors(tokens), k, weight=weight, first=first)
        method.refuse(tokens, order)
        return order

    def vectors(self, tokens: VisualTokens) -> Tensor:
        """``[..., N, D]``: the rows that a subspace is built from."""
        return tokens.features

    def weight(self, tokens: VisualTokens) -> Tensor | None:
        """``[..., N]``, 0 or more, where the tokens lie; None for 1 everywhere."""
        return None

    def first(self, tokens: VisualTokens) -> Tensor | None:
        """``[...]``: the token to start with; None for the largest score."""
        return None

    def refuse(self, tokens: VisualTokens, order: Tensor) -> None:
        """Check what the method does not stand for, given the order ``[..., k]``."""


def rows_of(features: Tensor, rows: str) -> Tensor:
    """``features [..., N, D]`` as they are (``raw``), or divided by their l2 norms (``unit``; zero rows stay)."""
    return features if rows == "raw" else normalize(precise(features), dim=-1)


def relevance_of(tokens: VisualTokens, space: str | None) -> Tensor | None:
    """``[..., N]``: of CLIP's space (``clip``), or the mean cosine of the language model's (``llm``).

    None without a question.

    Raises:
        MissingSignal: it was not collected.
    """
    if space == "llm":
        return question_relevance(tokens.features, tokens.signal(Signal.QUESTION), "mean", tokens.asked)
    relevance = precise(tokens.signal(Signal.CLIP_RELEVANCE))
    return relevance if relevance.shape[-1] else None
