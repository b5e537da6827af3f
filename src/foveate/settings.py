"""What a caller may set apart from the method: budget, positions, frames."""

from dataclasses import dataclass

from foveate.budget import Budget
from foveate.errors import InvalidOption

POSITIONS = ("original", "compact")


@dataclass(frozen=True)
class Settings:
    """How many tokens stay, and where they stand.

    Attributes:
        budget: how many.
        positions: ``original`` position ids of the unpruned prompt, or ``compact`` ones.
        per_frame: whether each frame of a video is ranked by itself.

    Raises:
        InvalidOption: ``positions`` or ``per_frame`` is none of these.
    """

    budget: Budget
    positions: str = "original"
    per_frame: bool = False

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("positions", self.positions, POSITIONS),
            ("per_frame", self.per_frame, (False, True)),
        ):
            if value not in allowed:
                raise InvalidOption(f"{name}={value!r}: allowed are {', '.join(map(repr, allowed))}")
