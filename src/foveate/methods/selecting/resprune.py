"""ResPrune: greedy residual energy times text relevance."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from foveate.methods.base import Method, at_least_zero, cosine_above_zero, one_of, precise
from foveate.methods.relevance import POOLS, powered, question_relevance
from foveate.methods.rows import ROWS, rows_of
from foveate.select import select_residual
from foveate.tokens import Signal, VisualTokens

# The paper's strengths of the text guidance; every family but Qwen's counts as LLaVA-like.
ALPHA_LLAVA, ALPHA_QWEN = 0.75, 0.3


@dataclass(frozen=True)
class ResPrune(Method):
    """Keep the token of the largest ``E_S(v) * r^alpha``: residual energy times text relevance.

    ``r`` is the cosine with the input embeddings of the question's nouns, in the language model's
    embedding space; raw rows. Without a question ``w = 1``.

    Attributes:
        alpha: strength of the text, 0 or more; ``"auto"`` is 0.3 for Qwen models and 0.75 for others.
        pool: over the nouns' tokens: ``max`` (the paper's choice), ``mean``, or ``pooled``.
        seed: the first token: the largest CLS attention (``cls``), the largest l2 norm (``norm``), the
            largest score like all others (``none``), or ``auto``: cls where the vision tower has a CLS
            token, else norm.
        rows: ``raw``, or ``unit``: directions alone.
        floor: what a lower relevance, and a negative one, counts as; above 0.

    Raises:
        InvalidOption: an option outside the above.

    Source: arXiv 2603.21105, Algorithm 1 (as described publicly; no code is released).
    Differs: cosines below ``floor`` are clamped to it, a value chosen on the dev questions of the bundled
        model (docs/methods.md; near 0 it rules out all that is not like a noun); all content words stand in
        where a question has no noun. Both are our reading; numbers measured with it are not a reproduction of
        the paper's.
    """

    source: ClassVar[str] = "arXiv 2603.21105"
    complexity: ClassVar[str] = "O(k N D)"
    nested: ClassVar[bool] = True

    alpha: float | Literal["auto"] = "auto"
    pool: Literal["max", "mean", "pooled"] = "max"
    seed: Literal["auto", "cls", "norm", "none"] = "auto"
    rows: Literal["raw", "unit"] = "raw"
    floor: float = 0.01

    def __post_init__(self) -> None:
        if not (isinstance(self.alpha, str) and self.alpha == "auto"):
            at_least_zero("alpha", self.alpha, otherwise="auto")
        one_of("pool", self.pool, POOLS)
        one_of("seed", self.seed, ("auto", "cls", "norm", "none"))
        one_of("rows", self.rows, ROWS)
        cosine_above_zero("floor", self.floor)

    @property
    def needs(self) -> frozenset[Signal]:
        """See `Method.needs`."""
        text = set() if self.alpha == 0 else {Signal.QUESTION}
        return frozenset(text | ({Signal.CLS_ATTENTION} if self.seed == "cls" else set()))

    def settled(self, available: frozenset[Signal]) -> "ResPrune":
        """See `Method.settled`."""
        if self.seed != "auto":
            return self
        return replace(self, seed="cls" if Signal.CLS_ATTENTION in available else "norm")

    def rank(self, tokens: VisualTokens, k: int) -> Tensor:
        """See `Method.rank`."""
        method = self.settled(tokens.signals)
        weight, first = method._weight(tokens), method._first(tokens)
        return select_residual(rows_of(tokens.features, self.rows), k, weight=weight, first=first)

    def _weight(self, tokens: VisualTokens) -> Tensor | None:
        default = ALPHA_QWEN if tokens.family.startswith("qwen") else ALPHA_LLAVA
        alpha = default if isinstance(self.alpha, str) else self.alpha
        if alpha == 0:
            return None
        relevance = question_relevance(tokens.features, tokens.signal(Signal.QUESTION), self.pool)
        return None if relevance is None else powered(relevance.clamp(min=self.floor), alpha)

    def _first(self, tokens: VisualTokens) -> Tensor | None:
        if self.seed == "none":
            return None
        if self.seed == "cls":
            return tokens.signal(Signal.CLS_ATTENTION).argmax()
        norms: Tensor = torch.linalg.vector_norm(precise(tokens.features), dim=1)
        return norms.argmax()
