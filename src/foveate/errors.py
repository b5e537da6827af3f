"""Every error foveate raises on purpose: one line that names the value and what is allowed."""

from collections.abc import Iterable
from difflib import get_close_matches


class FoveateError(Exception):
    """Base of all errors of this library."""


class UnsupportedModel(FoveateError):
    """The model's type, or its vision tower, has no family."""


class MissingSignal(FoveateError):
    """A method needs a signal (text, CLS attention, CLIP relevance) that is not to be had here."""


class InvalidBudget(FoveateError, ValueError):
    """``keep`` is neither a positive count nor a fraction in (0, 1]."""


class InvalidFeatures(FoveateError, ValueError):
    """Features or weights are of the wrong shape, or not finite."""


class InvalidInputs(FoveateError, ValueError):
    """The processor inputs do not fit together (images, marks, caches, positions)."""


class InvalidOption(FoveateError, ValueError):
    """A method's or function's option has a value that is not allowed."""


def first_line(error: BaseException) -> str:
    """What another library's error says in its first line, its type where it says nothing."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def unknown(what: str, name: str, allowed: Iterable[str]) -> InvalidOption:
    """The error for a name that a table does not have, with the nearest one that it has."""
    names = list(allowed)
    near = get_close_matches(name.lower(), names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return InvalidOption(f"{what} {name!r}: allowed are {', '.join(names) or 'none at all'}{hint}")
