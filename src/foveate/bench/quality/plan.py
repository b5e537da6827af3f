"""What a run needs: the arms of all suites, each once, and which of them belong to which variant."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from foveate.bench.arm import Arm
from foveate.bench.quality.store import Key
from foveate.bench.quality.suites import Suite, Variant, arms_of
from foveate.budget import Budget

Settle = Callable[[Arm], Arm]  # decides a method's ``auto`` options


@dataclass(frozen=True)
class Plan:
    """Suites and budgets, and their arms.

    Attributes:
        suites: by name.
        budgets: as asked for, the largest first.
        arms: what has to run, each outcome once, the largest budgets first.
        settle: decides a method's ``auto`` options.
    """

    suites: Mapping[str, Suite]
    budgets: tuple[Budget, ...]
    arms: tuple[Arm, ...]
    settle: Settle

    @classmethod
    def make(cls, suites: Mapping[str, Suite], budgets: Sequence[Budget], settle: Settle) -> "Plan":
        """Collect the arms.

        Raises:
            InvalidOption: a variant's text is no method.
            MissingSignal: a method needs a signal that is not to be had here.
        """
        unique: dict[Key, Arm] = {}
        for arm in map(settle, arms_of(list(suites.values()), budgets)):
            unique.setdefault(arm.key, arm)
        # Counts come before fractions: all that matters is that a method's largest budget is its first.
        ordered = sorted(unique.values(), key=lambda arm: -arm.budget.keep)
        return cls(suites, tuple(sorted(budgets, key=lambda budget: -budget.keep)), tuple(ordered), settle)

    def keys(self, variant: Variant, budget: Budget) -> list[Key]:
        """The arms of a variant at a budget."""
        return [self.settle(arm).key for arm in variant.arms(budget)]
