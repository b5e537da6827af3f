"""Numbers as text, and Markdown tables."""

from collections.abc import Callable, Sequence
from typing import Any

DASH = "–"


def percent(entry: dict[str, Any] | None, name: str = "accuracy") -> str:
    """``61.2 (58–65)``: a share and its interval in per cent; a dash for None."""
    if entry is None:
        return DASH
    return f"{100 * entry[name]:.1f}{_bounds(entry, lambda bound: f'{100 * bound:.0f}', '–')}"


def points(entry: dict[str, Any]) -> str:
    """``+3.2 (+0.5 to +6.1)``: a difference in points; bold where its interval leaves out 0."""
    text = f"{_signed(100 * entry['value'])}{_bounds(entry, lambda bound: _signed(100 * bound), ' to ')}"
    return f"**{text}**" if entry["sign"] else text


def rho(entry: dict[str, Any] | None) -> str:
    """``+0.12 (+0.05 to +0.19)``: a correlation; bold where its interval leaves out 0, a dash for None."""
    if entry is None:
        return DASH
    text = f"{_signed(entry['value'], 2)}{_bounds(entry, lambda bound: _signed(bound, 2), ' to ')}"
    return f"**{text}**" if entry["sign"] else text


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; numbers are aligned to the right."""
    marks = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, marks, *rows])


def listed(words: Sequence[str]) -> str:
    """``a, b and c``; ``none`` for nothing."""
    if len(words) < 2:
        return words[0] if words else "none"
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _bounds(entry: dict[str, Any], written: Callable[[float], str], between: str) -> str:
    """`` (58–65)``; nothing where no interval can be had."""
    return f" ({between.join(map(written, entry['interval']))})" if entry["interval"] else ""


def _signed(value: float, digits: int = 1) -> str:
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text[1:] if float(f"{value:.{digits}f}") == 0 else text
