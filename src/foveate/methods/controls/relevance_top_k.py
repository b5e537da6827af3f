"""Control: the most relevant tokens, ResPrune's ablation without the subspace."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from foveate.methods.base import Method, one_of, top
from foveate.methods.relevance import POOLS, question_relevance
from foveate.tokens import Signal, VisualTokens


@dataclass(frozen=True)
class RelevanceTopK(Method):
    """Keep the tokens of the largest cosine with the question's nouns; without a question the first k.

    Redundant tokens are all kept, which is why it collapses: 98.4 -> 82.4 % in ResPrune's Table IV.

    Attributes:
        pool: as `ResPrune`'s.

    Raises:
        InvalidOption: another pool.

    Source: control; arXiv 2603.21105, Table IV, setting 3.
    Differs: none.
    """

    source: ClassVar[str] = "control (arXiv 2603.21105, Table IV)"
    complexity: ClassVar[str] = "O(M N D)"
    nested: ClassVar[bool] = True

    pool: Literal["max", "mean", "pooled"] = "max"

    def __post_init__(self) -> None:
        one_of("pool", self.pool, POOLS)

    @property
    def needs(self) -> frozenset[Signal]:
        """See `Method.needs`."""
        return frozenset({Signal.QUESTION})

    def rank(self, tokens: VisualTokens, k: int) -> Tensor:
        """See `Method.rank`."""
        relevance = question_relevance(tokens.features, tokens.signal(Signal.QUESTION), self.pool)
        return top(tokens.features.new_zeros(len(tokens.features)) if relevance is None else relevance, k)
