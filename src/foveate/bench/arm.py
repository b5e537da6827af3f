"""An arm: one method at one budget, or all tokens."""

from dataclasses import dataclass

from foveate.budget import Budget
from foveate.methods import Method, UniformGrid
from foveate.methods.spec import parse_method, split_methods

ALL = "none"


@dataclass(frozen=True)
class Arm:
    """A method as the user wrote it, and a budget; ``none`` keeps every token, on the same path."""

    name: str
    method: Method
    budget: Budget

    @property
    def keeps_all(self) -> bool:
        """Whether it is the arm of all tokens, whatever the budgets."""
        return self.name == ALL

    @property
    def title(self) -> str:
        """For people: ``SPARE`` for ``spare``, options as written."""
        _, _, options = self.name.partition(":")
        shown = "all tokens" if self.keeps_all else type(self.method).__name__
        return f"{shown} ({options})" if options else shown

    @property
    def label(self) -> str:
        """For people: method and budget."""
        return self.title if self.keeps_all else f"{self.title} {self.budget.keep}"


def all_tokens() -> Arm:
    """The arm that keeps everything."""
    return Arm(ALL, UniformGrid(), Budget(1.0))


def parse_arms(methods: str, keep: str) -> list[Arm]:
    """Every method at every budget, ``none`` once.

    Args:
        methods: such as ``none,spare,resprune:alpha=0.5``.
        keep: such as ``192,64`` or ``0.11``.

    Raises:
        InvalidOption, InvalidBudget: either has something else in it.
    """
    budgets = [Budget.parse(part.strip()) for part in keep.split(",")]
    arms: list[Arm] = []
    for spec in split_methods(methods):
        if spec == ALL:
            arms.append(all_tokens())
        else:
            arms += [Arm(spec, parse_method(spec), budget) for budget in budgets]
    return list(dict.fromkeys(arms))
