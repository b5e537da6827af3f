"""SCOPE: saliency times coverage."""

from dataclasses import dataclass, replace
from numbers import Integral
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from foveate.errors import InvalidFeatures, InvalidOption
from foveate.methods.attention import Attending
from foveate.methods.authors import refuse_zero_rows
from foveate.methods.base import at_least_zero, one_of
from foveate.methods.relevance import powered
from foveate.methods.states import STATES, States, settled_states, states_of
from foveate.select import select_coverage
from foveate.tokens import Signal, VisualTokens


@dataclass(frozen=True)
class SCOPE(Attending):
    """Keep the token of the largest ``g_j a_j^alpha``: what it newly covers, times its attention; no text.

    ``g_j = sum_u max(0, cos(v_u, v_j) - c_u)`` with ``c_u`` the cosine of the kept token most like ``u``.

    Attributes:
        alpha: strength of the attention, 0 or more; 0 is coverage alone.
        combine: ``multiply``, or ``add`` the attention: ``g_j + (heads a_j)^alpha``.
        heads: of the vision tower: the authors sum the attention over them, which counts where it is added.
            None is 1.
        states: ``patches`` (what the projector reads), ``tokens`` (what it makes of them), or ``auto``:
            patches where they are to be had.
        attention: as `Attending`'s; ``received`` stands in where the tower has no CLS token.
        faithful: whether to refuse what the authors' code has no answer for, instead of the repairs below.
            ``auto`` states are patches, ``auto`` attention is cls.

    Raises:
        InvalidOption: an option outside the above; ``faithful`` with ``add`` and unknown ``heads``.
        InvalidFeatures: ``rank``, where ``faithful`` refuses zero rows or an attention of zeros to multiply with.

    Source: arXiv 2510.24214.
    Differs: ``alpha`` is an environment variable of the authors' code; 1 is our reading, as is that the
        states are the projector's input. Zero rows cover nothing and come last, where theirs then keep the
        first k, as for a product with zeros, which here means coverage alone. Without a CLS token, which the
        paper needs, the attention received from all patches.
    """

    source: ClassVar[str] = "arXiv 2510.24214"
    complexity: ClassVar[str] = "O(N^2 D + k N^2)"
    nested: ClassVar[bool] = True

    alpha: float = 1.0
    combine: Literal["multiply", "add"] = "multiply"
    heads: int | None = None
    states: States = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_zero("alpha", self.alpha)
        one_of("combine", self.combine, ("multiply", "add"))
        one_of("states", self.states, STATES)
        whole = isinstance(self.heads, Integral) and not isinstance(self.heads, bool)
        if self.heads is not None and not (whole and self.heads > 0):
            raise InvalidOption(f"heads={self.heads!r}: allowed is None or an int above 0")
        if self.faithful and self.combine == "add" and self.heads is None:
            raise InvalidOption("heads=None: allowed with faithful=True and combine='add' is the number of heads")

    @property
    def needs(self) -> frozenset[Signal]:
        """See `Method.needs`."""
        patches = self.states == "patches" or (self.states == "auto" and self.faithful)
        attention = super().needs if self.alpha else frozenset()
        return attention | ({Signal.PATCHES} if patches else set())

    def settled(self, available: frozenset[Signal]) -> Self:
        """See `Method.settled`."""
        return replace(super().settled(available), states=settled_states(self.states, self.needs | available))

    def rank(self, tokens: VisualTokens, k: int) -> Tensor:
        """See `Method.rank`."""
        states = states_of(tokens, self.settled(tokens.signals).states)
        if self.faithful:
            refuse_zero_rows(states)
        return select_coverage(states, k, weight=self._weight(tokens, k), combine=self.combine)

    def _weight(self, tokens: VisualTokens, k: int) -> Tensor | None:
        if self.alpha == 0:
            return None
        attention = self.scores(tokens, k)
        if self.combine == "add":
            return torch.pow(attention * (self.heads or 1), self.alpha)
        if bool((attention > 0).any()):
            return powered(attention, self.alpha)
        if self.faithful:
            raise InvalidFeatures("the attention is 0 everywhere: with faithful=True some must be above 0")
        return None
