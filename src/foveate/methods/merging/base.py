"""Methods of a second kind: they do not keep tokens as they are, they put others in the places of some."""

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from foveate.methods.base import Method
from foveate.tokens import VisualTokens


@dataclass(frozen=True)
class Merging(Method):
    """A method that puts one new token into each place it keeps; `rank` gives the places."""

    @property
    def unprojected(self) -> bool:
        """Whether `merge` gives states that the projector has yet to take (``[k, Dv]``), not features."""
        return False

    @abstractmethod
    def merge(self, tokens: VisualTokens, k: int) -> Tensor:
        """``[k, D]``, what stands at the tokens of ``rank(tokens, k)``, in its order; gradients flow.

        Args:
            tokens: one image, without locked rows.
            k: how many, ``1 <= k <= N``.
        """


@dataclass(frozen=True)
class Resizing(Method):
    """A method that encodes a smaller image; `rank` gives the places of its tokens, in raster order.

    Each grid (tile, frame) is made smaller by itself. Their counts are areas, so that `rank` may give fewer
    than ``k``.
    """

    @abstractmethod
    def size(self, grid: tuple[int, int], k: int) -> tuple[int, int]:
        """``(h, w)`` in tokens of the image to encode for ``k`` tokens of a ``grid``; ``h * w <= k``.

        Of a count that is reached, ``k = h * w``, it is the size by which it is reached.
        """
