"""The suites: what is compared with what, as a table of data."""

from collections.abc import Sequence
from dataclasses import dataclass

from foveate.bench.arm import ALL, ORIGINAL, Arm, all_tokens
from foveate.bench.defaults import Quality
from foveate.budget import Budget
from foveate.errors import InvalidOption, unknown
from foveate.methods import METHODS
from foveate.methods.spec import canonical, parse_method

DEFAULT, EVERY = Quality.DEFAULT, Quality.EVERY
RANDOM = "random"
RANDOM_SEEDS = 5
# What every comparison is shown beside, whatever methods are asked for.
CONTROLS = (RANDOM, "uniform", "pool", "downsample", "norm", "relevance", "rrqr")


@dataclass(frozen=True)
class Variant:
    """One row of a suite: a method as text (``random`` stands for its seeds), and its position ids."""

    label: str
    spec: str
    positions: str = ORIGINAL

    def arms(self, budget: Budget) -> list[Arm]:
        """Its arms at one budget: one, or one per seed.

        Raises:
            InvalidOption: no method can be read from the text.
        """
        specs = [self.spec]
        if self.spec == RANDOM:
            specs = [f"{RANDOM}:seed={seed}" for seed in range(RANDOM_SEEDS)]
        return [Arm(spec, parse_method(spec), budget, self.positions) for spec in specs]


@dataclass(frozen=True)
class Suite:
    """A question that papers leave open, and the variants that answer it.

    Attributes:
        asks: the question, in words.
        variants: its rows.
        pairs: rows to compare, ``(label, label)``: the first minus the second; None compares all with the first.
        apart: skills shown apart.
    """

    asks: str
    variants: tuple[Variant, ...]
    pairs: tuple[tuple[str, str], ...] | None = None
    apart: tuple[str, ...] = ()

    @property
    def compared(self) -> tuple[tuple[str, str], ...]:
        """The pairs of labels whose difference is of interest."""
        if self.pairs is not None:
            return self.pairs
        first, *others = (variant.label for variant in self.variants)
        return tuple((other, first) for other in others)


def _series(method: str, option: str, values: Sequence[str]) -> tuple[Variant, ...]:
    """The method as it is, named by its default, then with other values of one option."""
    default = getattr(parse_method(method), option)
    shown = default if isinstance(default, str) else f"{default:g}"
    others = (Variant(f"{option} = {value}", f"{method}:{option}={value}") for value in values)
    return (Variant(f"{option} = {shown}", method), *others)


SIGNS = "sign-space"
SIGN_PAIRS = (("+ in CLIP", "− in CLIP"), ("+ in LLM", "− in LLM"))
_SIGN_SPACE = (
    Variant("0 (no relevance)", "rrqr"),
    *(
        Variant(f"{sign} in {space.upper()}", f"spare:beta=1,relevance={space},sign={option}")
        for space in ("clip", "llm")
        for sign, option in (("−", "-"), ("+", "+"))
    ),
)
_MOVED = ("spare", "resprune", "rrqr", "uniform", RANDOM)

SUITES: dict[str, Suite] = {
    SIGNS: Suite(
        "Should relevant tokens be favoured (+) or disfavoured (−), and in whose space is relevance measured? "
        "One weight, `rhat` or `1 - rhat` with `rhat` the relevance scaled to [0, 1]; raw rows.",
        _SIGN_SPACE,
        pairs=(
            *((variant.label, _SIGN_SPACE[0].label) for variant in _SIGN_SPACE[1:]),
            *SIGN_PAIRS,
            ("− in CLIP", "− in LLM"),
            ("+ in CLIP", "+ in LLM"),
        ),
    ),
    "alpha": Suite(
        "How strong should ResPrune's text guidance be? `auto` is 0.75, and 0.3 for Qwen models.",
        _series("resprune", "alpha", ("0", "0.25", "0.5", "1", "2")),
    ),
    "beta": Suite(
        "How strong should SPARE's anti-relevance be? 0 is RRQR, 1 the plain reading of the paper.",
        (*_series("spare", "beta", ("0.5", "1", "2", "4")), Variant("beta = 0", "rrqr")),
    ),
    "floor": Suite(
        "What should a token count that ResPrune finds irrelevant? Its relevance is clamped to `floor`.",
        _series("resprune", "floor", ("1e-6", "0.003", "0.03", "0.1")),
    ),
    "pool": Suite(
        "How should ResPrune pool relevance over the question's nouns?",
        _series("resprune", "pool", ("mean", "pooled")),
    ),
    "seed": Suite(
        "Which token should ResPrune start with? `auto` is the one that CLS attends to most, where the tower has "
        "a CLS token; `norm` the longest; `none` leaves it to the score.",
        _series("resprune", "seed", ("norm", "none")),
    ),
    "normalise": Suite(
        "Should a token's length count (raw rows), or its direction alone (unit rows)?",
        tuple(
            Variant(f"{name}, {rows}", name if rows == "raw" else f"{name}:rows={rows}")
            for name in ("rrqr", "spare", "resprune")
            for rows in ("raw", "unit")
        ),
        pairs=tuple((f"{name}, unit", f"{name}, raw") for name in ("rrqr", "spare", "resprune")),
    ),
    "positions": Suite(
        "Should kept tokens keep their position ids, or be numbered anew without gaps?",
        tuple(
            Variant(f"{name}, {positions}", name, positions)
            for name in _MOVED
            for positions in (ORIGINAL, "compact")
        ),
        pairs=tuple((f"{name}, compact", f"{name}, {ORIGINAL}") for name in _MOVED),
        apart=("location", "relation"),
    ),
    "text-only": Suite(
        "What is left of ResPrune without its subspace (text alone), and without its text (residual alone)?",
        (
            Variant("ResPrune", "resprune"),
            Variant("text alone", "relevance"),
            Variant("residual alone", "resprune:alpha=0"),
        ),
    ),
}


def default_suite(methods: Sequence[str] = ()) -> Suite:
    """The methods asked for (all of the table by default), and every control."""
    specs = [*(methods or METHODS), *CONTROLS]
    asked = [spec for spec in dict.fromkeys(map(canonical, specs)) if spec.lower() != ALL]
    variants = tuple(Variant(spec, spec) for spec in asked)
    return Suite("Which method answers most with how many tokens?", variants, pairs=())


def suites_of(names: str, methods: Sequence[str] = ()) -> dict[str, Suite]:
    """The suites in a list such as ``default,alpha``; ``all`` stands for every one.

    Raises:
        InvalidOption: a name that no suite has.
    """
    table = {DEFAULT: default_suite(methods), **SUITES}
    asked = [name.strip().lower() for name in names.split(",")]
    if methods and not {DEFAULT, EVERY} & set(asked):
        raise InvalidOption(
            f"methods={','.join(methods)!r} with suite {names!r}: allowed with {DEFAULT} or {EVERY}"
        )
    for name in asked:
        if name not in table and name != EVERY:
            raise unknown("suite", name, [*table, EVERY])
    return {name: suite for name, suite in table.items() if name in asked or EVERY in asked}


def arms_of(suites: Sequence[Suite], budgets: Sequence[Budget]) -> list[Arm]:
    """All tokens, random tokens, and every variant at every budget; what suites share is there once.

    Raises:
        InvalidOption: no method can be read from a variant's text.
    """
    rows = [Variant(RANDOM, RANDOM), *(variant for suite in suites for variant in suite.variants)]
    unique = {all_tokens().key: all_tokens()}
    for row in rows:
        for budget in budgets:
            for arm in row.arms(budget):
                unique.setdefault(arm.key, arm)
    return list(unique.values())
