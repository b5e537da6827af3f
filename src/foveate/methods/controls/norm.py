"""Control: the longest tokens."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.methods.base import Method, precise, top
from foveate.tokens import VisualTokens


@dataclass(frozen=True)
class NormTopK(Method):
    """Keep the tokens of the largest l2 norm.

    Source: control.
    Differs: none.
    """

    source: ClassVar[str] = "control"
    complexity: ClassVar[str] = "O(N D)"
    nested: ClassVar[bool] = True

    def rank(self, tokens: VisualTokens, k: int) -> Tensor:
        """See `Method.rank`."""
        return top(torch.linalg.vector_norm(precise(tokens.features), dim=1), k)
