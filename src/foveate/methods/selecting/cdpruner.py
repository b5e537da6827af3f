"""CDPruner: a determinantal point process conditioned on the question."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from foveate.errors import InvalidFeatures, MissingSignal
from foveate.methods.authors import refuse_beyond_rank, refuse_zero_rows
from foveate.methods.base import Method, one_of, precise
from foveate.methods.relevance import powered, question_relevance, scaled
from foveate.methods.rows import rows_of
from foveate.select import select_residual
from foveate.tokens import Signal, VisualTokens

# The authors' floor: in the numerator alone, so that the least relevance is 1e-6 of the range.
EPSILON = 1e-6


@dataclass(frozen=True)
class CDPruner(Method):
    """Greedy MAP of the kernel ``r_i cos(v_i, v_j) r_j``: the residual energy of unit rows, weighted by ``r^2``.

    ``r = (s - min s + 1e-6) / (max s - min s)`` over the image, with ``s`` the relevance or its negative.

    Attributes:
        relevance: ``"clip"`` (projected CLIP patch against the question's CLIP embedding), ``"llm"``
            (mean cosine with the question's nouns in the language model's embedding space), or ``"auto"``
            (clip where a CLIP text tower is at hand, else llm).
        sign: ``-`` favours tokens of low relevance, ``+`` those of high relevance; ``auto`` is the authors'
            ``-`` in CLIP's space, where patches that show what is asked for are the least like it, and ``+``
            in the language model's, where nothing is known to be inverted.
        faithful: the authors' formula, refusing what their code has no answer for. ``auto`` relevance is clip.

    Raises:
        InvalidOption: an option outside the above.
        InvalidFeatures, InvalidBudget, MissingSignal: ``rank``, where ``faithful`` refuses a constant
            relevance, zero rows, k over the rank, or an empty question.

    Source: arXiv 2506.10967.
    Differs: min and max are the image's, where the authors take the batch's (with ``faithful``, too: an image
        alone is the same). Without it, ``w = 1`` for a constant relevance or no question, where they keep
        2 tokens; zero rows and k over the rank are filled by relevance, where they repeat tokens 0 and 1. The
        language model's space is our addition for models without a CLIP pair.
    """

    source: ClassVar[str] = "arXiv 2506.10967"
    complexity: ClassVar[str] = "O(k N D)"
    nested: ClassVar[bool] = True

    relevance: Literal["auto", "clip", "llm"] = "auto"
    sign: Literal["auto", "-", "+"] = "auto"
    faithful: bool = False

    def __post_init__(self) -> None:
        one_of("relevance", self.relevance, ("auto", "clip", "llm"))
        one_of("sign", self.sign, ("auto", "-", "+"))

    @property
    def needs(self) -> frozenset[Signal]:
        """See `Method.needs`."""
        clip = self.relevance == "clip" or (self.relevance == "auto" and self.faithful)
        return frozenset({Signal.CLIP_RELEVANCE if clip else Signal.QUESTION})

    def settled(self, available: frozenset[Signal]) -> "CDPruner":
        """See `Method.settled`."""
        clip = self.relevance == "clip" or (
            self.relevance == "auto" and Signal.CLIP_RELEVANCE in self.needs | available
        )
        sign = self.sign if self.sign != "auto" else "-" if clip else "+"
        return replace(self, relevance="clip" if clip else "llm", sign=sign)

    def rank(self, tokens: VisualTokens, k: int) -> Tensor:
        """See `Method.rank`."""
        if self.faithful:
            refuse_zero_rows(tokens.features)
        weight = self.settled(tokens.signals)._weight(tokens)
        order = select_residual(rows_of(tokens.features, "unit"), k, weight=weight)
        if self.faithful:
            refuse_beyond_rank(tokens.features, order)
        return order

    def _weight(self, tokens: VisualTokens) -> Tensor | None:
        relevance = self._relevance(tokens)
        if relevance is None:
            if self.faithful:
                raise MissingSignal("CDPruner(faithful=True) needs a question, and this one is empty")
            return None
        signed = relevance if self.sign == "+" else -relevance
        low, high = signed.amin(), signed.amax()
        if self.faithful and bool(low == high):
            raise InvalidFeatures(
                f"relevance is {float(low):g} everywhere: allowed with faithful=True is one that differs; "
                "the authors' code divides by its range"
            )
        if not self.faithful and scaled(signed) is None:
            return None
        return powered((signed - low + EPSILON) / (high - low), 2)

    def _relevance(self, tokens: VisualTokens) -> Tensor | None:
        if self.relevance == "llm":
            return question_relevance(tokens.features, tokens.signal(Signal.QUESTION), "mean")
        relevance = precise(tokens.signal(Signal.CLIP_RELEVANCE))
        return relevance if len(relevance) else None
