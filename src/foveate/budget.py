"""How many tokens to keep of each image, from token counts alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

from foveate.errors import InvalidBudget
from foveate.share import shares


@dataclass(frozen=True)
class Budget:
    """A budget per image or video: a count (``keep=64``) or a fraction (``keep=0.11``).

    All tiles of an image count together, and all frames of a video. A total (``keep_total=64``) is for all
    images of a prompt together: they share it in proportion to their tokens.

    Only the number of tokens decides, never the features, so that an engine which must know prompt
    lengths before encoding can use it too.

    Attributes:
        keep: the count or fraction.
        total: whether it is for all images of a prompt together.

    Raises:
        InvalidBudget: ``keep`` is not an int >= 1 or a float in (0, 1].
    """

    keep: int | float
    total: bool = False

    def __post_init__(self) -> None:
        keep = self.keep
        is_count = isinstance(keep, Integral) and not isinstance(keep, bool) and keep >= 1
        is_fraction = isinstance(keep, float) and 0.0 < keep <= 1.0
        if not (is_count or is_fraction):
            raise InvalidBudget(
                f"{self}: allowed are a count (an int of 1 or more) or a fraction (a float in (0, 1])"
            )

    def __str__(self) -> str:
        return f"{'keep_total' if self.total else 'keep'}={self.keep!r}"

    @classmethod
    def of(cls, keep: "int | float | Budget") -> "Budget":
        """``keep`` as a budget; a budget is returned as it is."""
        return keep if isinstance(keep, Budget) else cls(keep)

    @classmethod
    def of_one(cls, keep: "int | float | Budget | None", keep_total: int | float | None) -> "Budget":
        """The budget that one of the two gives.

        Raises:
            InvalidBudget: both or none is given.
        """
        if keep is not None and keep_total is None:
            return cls.of(keep)
        if keep_total is not None and keep is None:
            return cls(keep_total, total=True)
        raise InvalidBudget(f"keep={keep!r} and keep_total={keep_total!r}: allowed is one of the two")

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

    def counts(self, sizes: Sequence[int], least: Sequence[int]) -> list[int]:
        """The tokens to keep of each of a row's images, of ``sizes`` tokens, of which ``least`` are always kept.

        Raises:
            InvalidBudget: fewer than are always kept, or a total of fewer than one of each image.
        """
        if not self.total:
            counts = [self.count(n) for n in sizes]
            for number, (count, few) in enumerate(zip(counts, least, strict=True)):
                if count < few:
                    raise InvalidBudget(
                        f"{self}: {few} of the {sizes[number]} tokens of the row's image {number + 1} are always "
                        f"kept; allowed are {few} or more"
                    )
            return counts
        if not sizes:
            return []
        floor = [max(1, few) for few in least]
        count = self.count(sum(sizes))
        if count < sum(floor):
            raise InvalidBudget(
                f"{self}: {floor} tokens of the prompt's {len(sizes)} images are always kept, one at least of "
                f"each; allowed are {sum(floor)} or more"
            )
        return shares(count, sizes, floor)

    def counts_by_row(self, rows: Sequence[int], sizes: Sequence[int], least: Sequence[int]) -> list[int]:
        """`counts` of the images of a whole batch, of which each is in one of ``rows``.

        Raises:
            InvalidBudget: as `counts`.
        """
        found = [0] * len(rows)
        for row in set(rows):
            which = [index for index, own in enumerate(rows) if own == row]
            shared = self.counts([sizes[index] for index in which], [least[index] for index in which])
            for index, count in zip(which, shared, strict=True):
                found[index] = count
        return found
