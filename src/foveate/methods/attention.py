"""The attention that each token gets in the vision tower, as a score."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

from torch import Tensor

from foveate.methods.base import Method, one_of
from foveate.select.inputs import check_count, check_scores, precise
from foveate.tokens import Signal, VisualTokens


@dataclass(frozen=True)
class Attending(Method):
    """A method that goes by the attention that each token gets in the vision tower.

    Attributes:
        attention: ``cls``: the CLS token's; ``received``: the mean over all patches'; or ``auto``: cls where
            the vision tower has a CLS token, else received.
        faithful: do as the authors' code does: ``auto`` is cls, for nothing else stands in.

    Raises:
        InvalidOption: another attention.
    """

    of_cls: ClassVar[Signal] = Signal.CLS_ATTENTION

    attention: Literal["auto", "cls", "received"] = field(default="auto", kw_only=True)
    faithful: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("attention", self.attention, ("auto", "cls", "received"))
        one_of("faithful", self.faithful, (False, True))

    @property
    def strict(self) -> bool:
        """Whether ``auto`` is the CLS token's attention, also where there is none."""
        return self.faithful

    @property
    def attended(self) -> Signal:
        """The signal that holds the scores; of ``auto``, the one that it needs at least."""
        cls = self.attention == "cls" or (self.attention == "auto" and self.strict)
        return self.of_cls if cls else Signal.RECEIVED_ATTENTION

    @property
    def needs(self) -> frozenset[Signal]:
        """Attention, and what else the method needs."""
        return super().needs | {self.attended}

    def settled(self, available: frozenset[Signal]) -> Self:
        """``auto`` attention decided."""
        method = super().settled(available)
        if method.attention != "auto":
            return method
        return replace(method, attention="cls" if method.strict or self.of_cls in available else "received")

    def scores(self, tokens: VisualTokens, k: int) -> Tensor:
        """``[..., N]``, the attention, 0 or more, float64 as it is, all else in float32.

        Raises:
            InvalidBudget: ``k`` is not an int in ``[1, N]``: a top k would not say so.
            MissingSignal: it was not collected.
            InvalidFeatures: NaN, infinite or negative values.
        """
        check_count(k, tokens.features.shape[-2])
        signal = self.settled(tokens.signals).attended
        attention = precise(tokens.signal(signal))
        check_scores(signal.value, attention)
        return attention
