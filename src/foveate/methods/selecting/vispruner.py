"""VisPruner: the tokens attended to most, and of the others those least like each other."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from foveate.errors import InvalidBudget, InvalidOption
from foveate.methods.attention import Attending
from foveate.methods.authors import refuse_zero_rows
from foveate.methods.base import at_least_zero, one_of, top
from foveate.methods.states import STATES, States, settled_states, states_of
from foveate.select import select_alternating
from foveate.select.alternating import STEP
from foveate.tokens import Signal, VisualTokens


@dataclass(frozen=True)
class VisPruner(Attending):
    """Keep ``int(k * important)`` tokens by CLS attention; drop the rest in rounds, 8 at a time, by likeness.

    Attributes:
        important: the share of the k tokens that attention alone decides, 0 to 1.
        states: what likeness is the cosine of: ``patches`` (what the projector reads), ``tokens`` (what it
            makes of them), or ``auto``: patches where they are to be had.
        attention: as `Attending`'s; ``received`` stands in where the tower has no CLS token.
        faithful: whether to refuse what the authors' code has no answer for, instead of the repairs below.
            ``auto`` states are patches, ``auto`` attention is cls.

    Raises:
        InvalidOption: an option outside the above.
        InvalidBudget, InvalidFeatures: ``rank``, where ``faithful`` refuses a k with a round of an odd number
            of tokens or of fewer pairs than are to be dropped, or zero rows.

    Source: arXiv 2412.01818.
    Differs: computed in float64 where the device has it, ties to the larger attention (with ``faithful``,
        too): the rounds amplify rounding, and the authors' float16 keeps other tokens. Without it, odd rounds
        and short ones are computed as they come, where theirs raise, and zero rows are dropped first. Without
        a CLS token, which the paper needs, the attention received from all patches.
    """

    source: ClassVar[str] = "arXiv 2412.01818"
    complexity: ClassVar[str] = "O(N^2 D)"

    important: float = 0.5
    states: States = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_zero("important", self.important)
        if self.important > 1:
            raise InvalidOption(f"important={self.important!r}: allowed is a number from 0 to 1")
        one_of("states", self.states, STATES)

    @property
    def needs(self) -> frozenset[Signal]:
        """Attention, and patches where they are compared."""
        patches = self.states == "patches" or (self.states == "auto" and self.faithful)
        return super().needs | ({Signal.PATCHES} if patches else set())

    def settled(self, available: frozenset[Signal]) -> Self:
        """``auto`` attention and states decided."""
        return replace(super().settled(available), states=settled_states(self.states, self.needs | available))

    def rank(self, tokens: VisualTokens, k: int) -> Tensor:
        """``[..., k]``: by attention, then in the order of the last round of `select_alternating`."""
        attention = self.scores(tokens, k)
        states = states_of(tokens, self.settled(tokens.signals).states)
        important = int(k * self.important)
        n = attention.shape[-1]
        order = top(attention, n)
        if k == important:
            return order[..., :k]
        rest = order[..., important:]
        others = states.take_along_dim(rest[..., None], dim=-2)
        if self.faithful and k < n:
            refuse_zero_rows(others)
            _refuse_uneven_rounds(n - important, k - important, k)
        left = select_alternating(others, k - important)
        return torch.cat([order[..., :important], rest.take_along_dim(left, dim=-1)], dim=-1)


def _refuse_uneven_rounds(left: int, diverse: int, k: int) -> None:
    """Raises `InvalidBudget` where a round has an odd number of tokens, or fewer pairs than it drops."""
    while left > diverse:
        drop = min(STEP, left - diverse)
        if left % 2 or left // 2 < drop:
            raise InvalidBudget(
                f"k={k}: a round drops {drop} of {left} tokens; allowed with faithful=True are rounds of an even "
                "number of tokens, with a pair for each dropped"
            )
        left -= drop
