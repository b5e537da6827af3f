"""Methods whose new tokens are weighted sums of an image's tokens, before or after the projector."""

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from torch import Tensor

from foveate.methods.base import one_of, precise
from foveate.methods.merging import Merging
from foveate.tokens import Signal, VisualTokens


@dataclass(frozen=True)
class Mixing(Merging):
    """A merging method that says with which shares; what is summed follows from ``space``.

    Attributes:
        space: ``patches``: the states that the projector reads, which it then reads the sums of, as the
            authors do; ``features``: what it has made of them; or ``auto``: patches where the projector takes
            one per token, else features.
        faithful: do as the authors' code does, also where it breaks.

    Raises:
        InvalidOption: another space.
    """

    space: Literal["auto", "patches", "features"] = field(default="auto", kw_only=True)
    faithful: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("space", self.space, ("auto", "patches", "features"))
        one_of("faithful", self.faithful, (False, True))

    @property
    def needs(self) -> frozenset[Signal]:
        """See `Method.needs`."""
        return frozenset({Signal.KEYS} | ({Signal.PATCHES} if self.space == "patches" else set()))

    def settled(self, available: frozenset[Signal]) -> Self:
        """See `Method.settled`."""
        if self.space != "auto":
            return self
        return replace(self, space="patches" if Signal.PATCHES in available else "features")

    @property
    def unprojected(self) -> bool:
        """See `Merging.unprojected`."""
        return self.space == "patches"

    @abstractmethod
    def mix(self, tokens: VisualTokens, k: int) -> Tensor:
        """``[k, N]``: how much of each token is in what stands at each of ``rank(tokens, k)``."""

    def merge(self, tokens: VisualTokens, k: int) -> Tensor:
        """See `Merging.merge`: sums in float32 or better."""
        method = self.settled(tokens.signals)
        states = tokens.signal(Signal.PATCHES) if method.unprojected else tokens.features
        return (method.mix(tokens, k).to(precise(states)) @ precise(states)).to(states.dtype)
