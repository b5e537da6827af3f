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
    complexity: ClassVar[str] = "O(N^2 D + N^3)"

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
        """See `Method.needs`."""
        patches = self.states == "patches" or (self.states == "auto" and self.faithful)
        return super().needs | ({Signal.PATCHES} if patches else set())

    def settled(self, available: frozenset[Signal]) -> Self:
        """See `Method.settled`."""
        return replace(super().settled(available), states=settled_states(self.states, self.needs | available))

    def rank(self, tokens: VisualTokens, k: int) -> Tensor:
        """See `Method.rank`."""
        attention = self.scores(tokens, k)
        states = states_of(tokens, self.settled(tokens.signals).states)
        important = int(k * self.important)
        order = top(attention, len(attention))
        if k == important:
            return order[:k]
        rest = order[important:]
        if self.faithful and k < len(attention):
            refuse_zero_rows(states[rest])
            _refuse_uneven_rounds(len(rest), k - important, k)
        return torch.cat([order[:important], rest[select_alternating(states[rest], k - important)]])


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
