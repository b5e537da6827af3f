"""All that is reported, in plain data: medians over rounds, and ratios to no pruning taken within a round."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from foveate.bench.serve.server import COUNTERS
from foveate.bench.speed.spread import Spread, spread

if TYPE_CHECKING:
    from foveate.bench.serve.benchmark import Round

Plain = dict[str, Any]


def _per_token(one: "Round") -> float:
    further = [(answer.total - answer.first) / (answer.new - 1) for answer in one.answers if answer.new > 1]
    return median(further) if further else 0


# What is reported of a round.
MEASURES: dict[str, Callable[["Round"], float]] = {
    "requests_per_second": lambda one: len(one.answers) / one.seconds,
    "first_token": lambda one: median(answer.first for answer in one.answers),
    "per_token": _per_token,
    "total": lambda one: median(answer.total for answer in one.answers),
}
HIGHER = ("requests_per_second",)  # is better; the others are seconds


def summarise(
    rounds: Mapping[tuple[int, str], Sequence["Round"]], arms: Mapping[str, Plain | None], settings: Plain
) -> Plain:
    """Of all rounds but the warm-up.

    Args:
        rounds: by requests at a time and arm.
        arms: what each asks for; the first is no pruning.
        settings: what was measured on what.
    """
    stock = {level: rounds[level, next(iter(arms))] for level, _ in rounds}
    rows = [
        {
            "label": label,
            "concurrency": level,
            "options": arms[label],
            **{name: _plain(spread([read(one) for one in own])) for name, read in MEASURES.items()},
            "better": {name: _better(name, stock[level], own) for name in MEASURES},
            "prompt": fmean(answer.prompt for one in own for answer in one.answers),
            "found": {name: _share(own, *counters) for name, counters in COUNTERS.items()},
        }
        for (level, label), own in rounds.items()
    ]
    count = len(next(iter(stock.values())))
    commits = sorted({one.commit for own in rounds.values() for one in own if one.commit})
    return {
        "context": {
            **settings,
            "concurrency": [*stock],
            "rounds": count,
            "confidence": spread([1.0] * count).confidence,
            "commits": commits,
        },
        "rows": rows,
    }


def _better(name: str, stock: Sequence["Round"], own: Sequence["Round"]) -> Plain | None:
    """How many times as good as without pruning; None for the time of further tokens where there are none."""
    read = MEASURES[name]
    pairs = [(read(whole), read(pruned)) for whole, pruned in zip(stock, own, strict=True)]
    if not all(whole > 0 and pruned > 0 for whole, pruned in pairs):
        return None
    found = spread([pruned / whole if name in HIGHER else whole / pruned for whole, pruned in pairs])
    return {**_plain(found), "sign": found.sign}


def _share(rounds: Sequence["Round"], looked_up: str, found: str) -> float | None:
    """Of what was looked up; None where nothing was."""
    asked = sum(one.counted[looked_up] for one in rounds)
    return sum(one.counted[found] for one in rounds) / asked if asked else None


def _plain(found: Spread) -> Plain:
    interval = list(found.interval) if found.confidence else None  # of a single value there is none
    return {"median": found.median, "quartiles": list(found.quartiles), "interval": interval}
