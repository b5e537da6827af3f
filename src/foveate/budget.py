"""How many tokens to keep of an image, from its token count alone."""

import math
from dataclasses import dataclass
from numbers import Integral

from foveate.errors import InvalidBudget


@dataclass(frozen=True)
class Budget:
    """A budget per image: a count (``keep=64``) or a fraction (``keep=0.11``).

    Only the number of tokens decides, never the features, so that an engine which must know prompt
    lengths before encoding can use it too.

    Raises:
        InvalidBudget: ``keep`` is not an int >= 1 or a float in (0, 1].
    """

    keep: int | float

    def __post_init__(self) -> None:
        keep = self.keep
        is_count = isinstance(keep, Integral) and not isinstance(keep, bool) and keep >= 1
        is_fraction = isinstance(keep, float) and 0.0 < keep <= 1.0
        if not (is_count or is_fraction):
            raise InvalidBudget(
                f"keep={keep!r}: allowed are a count (an int of 1 or more) or a fraction (a float in (0, 1])"
            )

    @classmethod
    def of(cls, keep: "int | float | Budget") -> "Budget":
        """``keep`` as a budget; a budget is returned as it is."""
        return keep if isinstance(keep, Budget) else cls(keep)

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """A budget from text: ``"64"`` is a count, ``"0.11"`` and ``"11%"`` are fractions.

        Raises:
            InvalidBudget: the text is neither.
        """
        try:
            if text.endswith("%"):
                return cls(float(text[:-1]) / 100)
            return cls(float(text) if "." in text else int(text))
        except ValueError as error:  # InvalidBudget is one, too
            raise InvalidBudget(
                f"keep={text!r}: allowed are a count such as 64, or a fraction in (0, 1] such as 0.11"
            ) from error

    def count(self, n: int) -> int:
        """The tokens to keep of ``n``: at least 1, at most ``n`` (a count over ``n`` keeps all)."""
        k = int(self.keep) if isinstance(self.keep, Integral) else math.floor(self.keep * n + 0.5)
        return min(n, max(1, k))
