"""SPARE: subspace reconstruction that favours tokens of low image-text relevance."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from foveate.methods.base import Method, at_least_zero, one_of, precise
from foveate.methods.relevance import powered, question_relevance, scaled
from foveate.methods.rows import ROWS, rows_of
from foveate.select import select_residual
from foveate.tokens import Signal, VisualTokens

# Our reading: keeps the weight of the most relevant token above zero.
EPSILON = 1e-6


@dataclass(frozen=True)
class SPARE(Method):
    """Column subset selection by the largest projection residual, weighted against relevance.

    ``w_i = (1 - rhat_i + eps)^beta`` with ``rhat`` the relevance scaled to [0, 1] over the image. Raw
    rows: the magnitude counts. A constant relevance, or no question, means ``w = 1``; ``beta = 0`` or
    ``relevance=None`` is plain RRQR.

    Attributes:
        beta: strength of the anti-relevance, 0 or more; 1 is the plain reading of the paper.
        relevance: ``"clip"`` (projected CLIP patch against the question's CLIP embedding), ``"llm"``
            (mean cosine with the question's nouns in the language model's embedding space), ``"auto"``
            (clip where a CLIP text tower is at hand, else llm), or None.
        sign: ``-`` favours tokens of low relevance (SPARE's point); ``+`` those of high relevance, with
            ``w_i = (rhat_i + eps)^beta``.
        rows: ``raw``, or ``unit``: directions alone.

    Raises:
        InvalidOption: an option outside the above.

    Source: arXiv 2606.18681 (abstract and public summaries; no code is released).
    Differs: the form of the weight, the min-max scaling and the spaces are our reading; ``beta = 0.25`` was
        chosen on the dev questions of the bundled model (docs/methods.md). Numbers measured with it are not a
        reproduction of the paper's.
    """

    source: ClassVar[str] = "arXiv 2606.18681"
    complexity: ClassVar[str] = "O(k N D)"
    nested: ClassVar[bool] = True

    beta: float = 0.25
    relevance: Literal["auto", "clip", "llm"] | None = "auto"
    sign: Literal["-", "+"] = "-"
    rows: Literal["raw", "unit"] = "raw"

    def __post_init__(self) -> None:
        at_least_zero("beta", self.beta)
        one_of("relevance", self.relevance, ("auto", "clip", "llm", None))
        one_of("sign", self.sign, ("-", "+"))
        one_of("rows", self.rows, ROWS)

    @property
    def needs(self) -> frozenset[Signal]:
        """See `Method.needs`."""
        if self.relevance is None or self.beta == 0:
            return frozenset()
        return frozenset({Signal.CLIP_RELEVANCE if self.relevance == "clip" else Signal.QUESTION})

    def settled(self, available: frozenset[Signal]) -> "SPARE":
        """See `Method.settled`."""
        if self.relevance != "auto":
            return self
        return replace(self, relevance="clip" if Signal.CLIP_RELEVANCE in available else "llm")

    def rank(self, tokens: VisualTokens, k: int) -> Tensor:
        """See `Method.rank`."""
        method = self.settled(tokens.signals)
        return select_residual(rows_of(tokens.features, self.rows), k, weight=method._weight(tokens))

    def _weight(self, tokens: VisualTokens) -> Tensor | None:
        relevance = self._relevance(tokens) if self.needs else None
        rhat = None if relevance is None else scaled(relevance)
        if rhat is None:
            return None
        return powered((rhat if self.sign == "+" else 1 - rhat) + EPSILON, self.beta)

    def _relevance(self, tokens: VisualTokens) -> Tensor | None:
        if self.relevance == "llm":
            return question_relevance(tokens.features, tokens.signal(Signal.QUESTION), "mean")
        relevance = precise(tokens.signal(Signal.CLIP_RELEVANCE))
        return relevance if len(relevance) else None
