"""Times, ratios and bytes as text."""

from typing import Any

from foveate.bench.quality.cells import DASH

Plain = dict[str, Any]
WORDS = {1: "faster", 0: "unclear", -1: "slower"}
UNITS = ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB"))


def milliseconds(entry: Plain, spread: bool = False) -> str:
    """``412``, or with its quartiles ``412 (405–420)``: the median in ms."""
    text = _three(1000 * entry["median"])
    low, high = (_three(1000 * value) for value in entry["quartiles"])
    return f"{text} ({low}–{high})" if spread and entry["interval"] is not None else text


def speedup(entry: Plain | None) -> str:
    """``0.80x slower (0.75–0.85)``: times as fast as stock, with its interval; unclear as `Spread.sign` says."""
    if entry is None:
        return DASH
    bounds = "" if entry["interval"] is None else " ({:.2f}–{:.2f})".format(*entry["interval"])
    return f"{entry['median']:.2f}x {WORDS[entry['sign']]}{bounds}"


def size(number: int | None) -> str:
    """``1.2 GiB``; a dash for what was not measured."""
    if number is None:
        return DASH
    for unit, name in UNITS:
        if number >= unit:
            return f"{_three(number / unit)} {name}"
    return f"{number} B"


def layers(tokens: list[int]) -> str:
    """``64``, or ``576, 64 from layer 3``: visual tokens by layer."""
    changes = [place for place in range(1, len(tokens)) if tokens[place] != tokens[place - 1]]
    return ", ".join([str(tokens[0]), *(f"{tokens[place]} from layer {place + 1}" for place in changes)])


def added(row: Plain) -> str:
    """``5.65 ms, 75 operations, 17 reads``: what pruning adds beside the encoder; a dash for stock."""
    if row["operations"] is None:
        return DASH
    return f"{milliseconds(row['seconds']['select'])} ms, {row['operations']} operations, {row['reads']} reads"


def share(value: float) -> str:
    """``4.2 %``."""
    return f"{_three(100 * value)} %"


def _three(value: float) -> str:
    """Three digits that count, and no more than two behind the point."""
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f}"
