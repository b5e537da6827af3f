"""FasterVLM: the tokens that the CLS query attends to."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.methods.attention import cls_attention_of
from foveate.methods.base import Method, top
from foveate.tokens import Signal, VisualTokens


@dataclass(frozen=True)
class FasterVLM(Method):
    """Keep the tokens of the largest CLS attention of the vision tower, mean over heads; no text.

    Attributes:
        faithful: changes nothing here: no input is known that breaks a top k.

    Raises:
        InvalidFeatures: ``rank``, for an attention that is NaN, infinite or negative.

    Source: arXiv 2412.01818 (v1).
    Differs: ties go to the lowest index, where the authors leave them open.
    """

    source: ClassVar[str] = "arXiv 2412.01818v1"
    complexity: ClassVar[str] = "O(N log N)"
    nested: ClassVar[bool] = True

    faithful: bool = False

    @property
    def needs(self) -> frozenset[Signal]:
        """See `Method.needs`."""
        return frozenset({Signal.CLS_ATTENTION})

    def rank(self, tokens: VisualTokens, k: int) -> Tensor:
        """See `Method.rank`."""
        return top(cls_attention_of(tokens), k)
