"""Who is timed: stock generate(), the same with all tokens on our path, and every method at every budget."""

from dataclasses import dataclass

from foveate.bench.arm import Arm, all_tokens, parse_arms
from foveate.errors import InvalidOption

STOCK, WHOLE = "stock", "whole"


@dataclass(frozen=True)
class Contestant:
    """One way to an answer.

    Attributes:
        key: the same for contestants that do the same.
        label: for people.
        method: as the user wrote it; ``stock`` for no pruning and ``whole`` for our path without any.
        keep: the budget as asked for; None for all tokens.
        arm: what prunes; None for stock ``generate()``.
    """

    key: str
    label: str
    method: str
    keep: int | float | None
    arm: Arm | None


def contestants(methods: str, keep: str) -> list[Contestant]:
    """Stock and our path with all tokens, then the methods.

    Raises:
        InvalidOption, InvalidBudget: either has something else in it.
    """
    found = [
        Contestant(STOCK, "all tokens, stock", STOCK, None, None),
        Contestant(WHOLE, "all tokens, our path", WHOLE, None, all_tokens()),
    ]
    for arm in parse_arms(methods, keep):
        if arm.keeps_all:
            raise InvalidOption(
                f"methods {methods!r}: no pruning is always measured; allowed is to leave none out"
            )
        keep_asked = arm.budget.keep
        found.append(Contestant(f"{arm.method!r} {keep_asked}", arm.label, arm.name, keep_asked, arm))
    return list({one.key: one for one in found}.values())
