"""What a method comes to: one that prunes the prompt, and those that go on inside the language model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foveate.budget import Budget
from foveate.errors import InvalidBudget
from foveate.methods import Compose, Inside, Method, UniformGrid

Keep = int | float | Budget | None


@dataclass(frozen=True)
class Parts:
    """Methods with their budgets.

    Attributes:
        prompt: prunes the prompt; one that keeps all where none is asked for.
        budget: its.
        inside: those inside the language model.
    """

    prompt: Method
    budget: Budget
    inside: tuple[tuple[Inside, Budget], ...] = ()

    @property
    def keeps_all(self) -> bool:
        """Whether none prunes the prompt."""
        return bool(self.inside) and self.budget.keep == 1.0 and isinstance(self.prompt, UniformGrid)

    @classmethod
    def of(cls, method: Any, keep: "Keep | Sequence[Keep]", keep_total: Any) -> "Parts":
        """The parts of a method, an inside one, or a `Compose`, which has a budget for each of its parts.

        Raises:
            InvalidBudget: a bad budget, or not one for each part.
        """
        if not isinstance(method, (Compose, Inside)):
            return cls(method, Budget.of_one(keep, keep_total))  # type: ignore[arg-type]
        if isinstance(method, Inside):
            return cls(UniformGrid(), Budget(1.0), ((method, Budget.of_one(keep, keep_total)),))  # type: ignore[arg-type]
        budgets = list(zip(_each(method, "keep", keep), _each(method, "keep_total", keep_total), strict=True))
        pairs = [(part, Budget.of_one(*budget)) for part, budget in zip(method.parts, budgets, strict=True)]
        inside = tuple((part, budget) for part, budget in pairs if isinstance(part, Inside))
        first, budget = pairs[0]
        return cls(first, budget, inside) if isinstance(first, Method) else cls(UniformGrid(), Budget(1.0), inside)


def _each(method: Compose, name: str, given: Any) -> list[Any]:
    if given is None:
        return [None] * len(method.parts)
    if not isinstance(given, (tuple, list)) or len(given) != len(method.parts):
        raise InvalidBudget(f"{name}={given!r}: allowed is one budget for each of the {len(method.parts)} parts")
    return list(given)
