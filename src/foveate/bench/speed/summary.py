"""All that is reported, in plain data: medians and spreads by stage, and speed-ups taken round by round."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from foveate.bench.speed.contestants import STOCK, WHOLE, Contestant
from foveate.bench.speed.spread import Spread, spread
from foveate.bench.speed.store import Case, Store, Timed

Plain = dict[str, Any]


def _first_token(timed: Timed) -> float:
    return timed.seconds["encode"] + timed.seconds["select"] + timed.seconds["prefill"]


# What is reported of a pass, in seconds; NaN is never: an answer of one token has no decoding.
MEASURES: dict[str, Callable[[Timed], float]] = {
    "encode": lambda timed: timed.seconds["encode"],
    "select": lambda timed: timed.seconds["select"],
    "prefill": lambda timed: timed.seconds["prefill"],
    "decode_per_token": lambda timed: timed.seconds["decode"] / max(1, timed.new_tokens - 1),
    "first_token": _first_token,
    "end_to_end": lambda timed: sum(timed.seconds.values()),
}
COMPARED = ("prefill", "decode_per_token", "first_token", "end_to_end")  # with stock, in the same round
PAYS = ("first_token", "end_to_end")


def summarise(contestants: Sequence[Contestant], cases: Sequence[Case], store: Store, context: Plain) -> Plain:
    """Of all rounds in which every contestant passed.

    Args:
        contestants: stock first.
        cases: in the order in which they are shown.
        store: with all of them.
        context: what was measured on what.
    """
    told = [_case(contestants, case, store) for case in cases]
    keys = [one.key for one in contestants]
    # A store may know more: other cases and contestants, and rounds that were cut.
    timed = [
        store.timed[case, number, key] for case in cases for number in store.rounds(case, keys) for key in keys
    ]
    loads = [one.load for one in timed if one.load is not None]
    context = {
        **context,
        "commits": sorted({one.commit for one in timed if one.commit}),
        "load": [min(loads), max(loads)] if loads else None,
        "repeats": min(entry["repeats"] for entry in told),
        "confidence": min(entry["confidence"] for entry in told),
    }
    return {
        "context": context,
        "cases": told,
        "break_even": _break_even(told, "tokens", "batch"),
        "break_even_batch": _break_even(told, "batch", "tokens"),
    }


def _case(contestants: Sequence[Contestant], case: Case, store: Store) -> Plain:
    rounds = store.rounds(case, [one.key for one in contestants])
    stock = [store.timed[case, number, STOCK] for number in rounds]
    tokens, batch = case
    rows = []
    for one in contestants:
        own = [store.timed[case, number, one.key] for number in rounds]
        weighed = store.weighed[case, one.key]
        rows.append(
            {
                "label": _label(one, tokens),
                "method": one.method,
                "keep": one.keep,
                "key": one.key,
                "seconds": {name: _plain(spread([read(t) for t in own])) for name, read in MEASURES.items()},
                "speedup": {name: _speedup(MEASURES[name], stock, own) for name in COMPARED},
                "select_of_prefill": median(t.seconds["select"] / t.seconds["prefill"] for t in own),
                "memory": weighed.memory,
                "kv_bytes": weighed.kv_bytes,
                "prompt": weighed.prompt,
                "tokens_per_layer": weighed.tokens_per_layer,
                "attention": weighed.attention,
                "dtype": weighed.dtype,
                "decided": weighed.decided,
                "operations": weighed.operations,
                "reads": weighed.reads,
            }
        )
    confidence = spread([1.0] * len(rounds)).confidence
    return {"tokens": tokens, "batch": batch, "repeats": len(rounds), "confidence": confidence, "rows": rows}


def _label(one: Contestant, tokens: int) -> str:
    """With what is really kept, where more was asked for than there is."""
    beyond = one.arm is not None and isinstance(one.keep, int) and one.keep > tokens
    return f"{one.arm.title} {tokens}" if one.arm and beyond else one.label


def _speedup(read: Callable[[Timed], float], stock: Sequence[Timed], own: Sequence[Timed]) -> Plain | None:
    """How many times as fast as stock, with the sign that the interval allows; None where nothing is timed."""
    ratios = [read(whole) / read(timed) for whole, timed in zip(stock, own, strict=True) if read(timed) > 0]
    if len(ratios) < len(own):
        return None
    found = spread(ratios)
    return {**_plain(found), "sign": found.sign}


def _plain(found: Spread) -> Plain:
    interval = list(found.interval) if found.confidence else None  # of a single value there is none
    return {"median": found.median, "quartiles": list(found.quartiles), "interval": interval}


def _break_even(cases: Sequence[Plain], over: str, at: str) -> list[Plain]:
    """From where on pruning pays: there, and wherever more was measured.

    Args:
        cases: all of them.
        over: ``tokens`` or ``batch``, which grows.
        at: the other one, which stays.
    """
    found = []
    for fixed in dict.fromkeys(case[at] for case in cases):
        here = sorted((case for case in cases if case[at] == fixed), key=lambda case: case[over])
        for row in here[-1]["rows"]:
            if row["method"] in (STOCK, WHOLE):
                continue
            lines = [(case[over], _row(case, row["key"])["speedup"]) for case in here]
            found.append(
                {
                    **{name: row[name] for name in ("label", "method", "keep", "key")},
                    at: fixed,
                    "measured": [place for place, _ in lines],
                    **{name: _pays_from([(n, ratios[name]) for n, ratios in lines]) for name in PAYS},
                }
            )
    return found


def _row(case: Plain, key: str) -> Plain:
    row: Plain = next(row for row in case["rows"] if row["key"] == key)
    return row


def _pays_from(ratios: Sequence[tuple[int, Plain | None]]) -> int | None:
    start = None
    for tokens, ratio in reversed(ratios):
        if ratio is None or ratio["sign"] <= 0:
            break
        start = tokens
    return start
