"""An arm: one method at one budget, or all tokens."""

from dataclasses import dataclass

from foveate.budget import Budget
from foveate.errors import InvalidOption
from foveate.methods import Inside, Method, UniformGrid
from foveate.methods.spec import canonical, parse_method, split_methods

ALL = "none"
ORIGINAL = "original"  # position ids of the unpruned prompt


@dataclass(frozen=True)
class Arm:
    """A method as the user wrote it, a budget, and position ids; ``none`` keeps every token, on the same path."""

    name: str
    method: Method | Inside
    budget: Budget
    positions: str = ORIGINAL

    @property
    def keeps_all(self) -> bool:
        """Whether it is the arm of all tokens, whatever the budgets."""
        return self.name == ALL

    @property
    def prunes_with(self) -> Method:
        """The method, where it prunes the prompt.

        Raises:
            InvalidOption: it acts inside the language model.
        """
        if isinstance(self.method, Inside):
            raise InvalidOption(
                f"method {self.name!r} acts inside the language model: allowed are those that prune the prompt, "
                "arms are compared at equal numbers of tokens given to it"
            )
        return self.method

    @property
    def title(self) -> str:
        """For people: ``SPARE`` for ``spare``, options as written."""
        _, _, options = self.name.partition(":")
        shown = "all tokens" if self.keeps_all else type(self.method).__name__
        listed = [part for part in (options, self.positions) if part not in ("", ORIGINAL)]
        return f"{shown} ({', '.join(listed)})" if listed else shown

    @property
    def label(self) -> str:
        """For people: method and budget."""
        return self.title if self.keeps_all else f"{self.title} {self.budget.keep}"

    @property
    def key(self) -> tuple[str, str, int | float]:
        """The same for arms with the same outcome, however they are written."""
        return (ALL, ORIGINAL, 1.0) if self.keeps_all else (repr(self.method), self.positions, self.budget.keep)


def all_tokens() -> Arm:
    """The arm that keeps everything."""
    return Arm(ALL, UniformGrid(), Budget(1.0))


def parse_budgets(keep: str) -> list[Budget]:
    """The budgets in text such as ``192,64`` or ``0.11``, each once.

    Raises:
        InvalidBudget: one of them is none.
    """
    return list(dict.fromkeys(Budget.parse(part.strip()) for part in keep.split(",")))


def parse_arms(methods: str, keep: str) -> list[Arm]:
    """Every method at every budget, ``none`` once.

    Args:
        methods: such as ``none,spare,resprune:alpha=0.5``.
        keep: such as ``192,64`` or ``0.11``.

    Raises:
        InvalidOption, InvalidBudget: either has something else in it.
    """
    budgets = parse_budgets(keep)
    arms: list[Arm] = []
    for spec in map(canonical, split_methods(methods)):
        if spec.lower() == ALL:
            arms.append(all_tokens())
        else:
            arms += [Arm(spec, parse_method(spec), budget) for budget in budgets]
    return list(dict.fromkeys(arms))
