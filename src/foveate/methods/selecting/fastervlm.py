"""FasterVLM: the tokens attended to most."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.methods.attention import Attending
from foveate.methods.base import top
from foveate.tokens import VisualTokens


@dataclass(frozen=True)
class FasterVLM(Attending):
    """Keep the tokens of the largest CLS attention of the vision tower, mean over heads; no text.

    Attributes:
        attention: as `Attending`'s; ``received`` stands in where the tower has no CLS token.
        faithful: whether to refuse such a tower; no input is known that breaks a top k.

    Raises:
        InvalidOption: another attention.
        InvalidFeatures: ``rank``, for an attention that is NaN, infinite or negative.

    Source: arXiv 2412.01818 (v1).
    Differs: ties go to the lowest index, where the authors leave them open. Without a CLS token, which the paper
        needs, the attention received from all patches.
    """

    source: ClassVar[str] = "arXiv 2412.01818v1"
    complexity: ClassVar[str] = "O(N log N)"
    nested: ClassVar[bool] = True

    def rank(self, tokens: VisualTokens, k: int) -> Tensor:
        """See `Method.rank`."""
        return top(self.scores(tokens, k), k)
