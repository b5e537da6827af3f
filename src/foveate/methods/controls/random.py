"""Control: tokens at random."""

from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar

import torch
from torch import Tensor

from foveate.errors import InvalidOption
from foveate.methods.base import Method
from foveate.tokens import VisualTokens


@dataclass(frozen=True)
class Random(Method):
    """Keep tokens uniformly at random; the same ones for every image of N tokens, given the seed.

    Attributes:
        seed: an int from 0 to 2**63 - 1.

    Raises:
        InvalidOption: the seed is none.

    Source: control.
    Differs: none.
    """

    source: ClassVar[str] = "control"
    complexity: ClassVar[str] = "O(N)"
    nested: ClassVar[bool] = True

    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, Integral) or not 0 <= self.seed < 2**63:
            raise InvalidOption(f"seed={self.seed!r}: allowed is an int from 0 to 2**63 - 1")

    def rank(self, tokens: VisualTokens, k: int) -> Tensor:
        """See `Method.rank`."""
        generator = torch.Generator().manual_seed(int(self.seed))  # on the CPU: the same on every device
        order = torch.randperm(len(tokens.features), generator=generator)
        return order[:k].to(tokens.features.device)
