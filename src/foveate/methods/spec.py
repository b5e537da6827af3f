"""A method written as text: ``spare``, or ``spare:beta=0.5,relevance=llm``."""

from dataclasses import fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from foveate.errors import InvalidOption, unknown
from foveate.methods import INSIDE, METHODS, Inside, Method

NAMES: dict[type, str] = {int: "a whole number", float: "a number", tuple: "layers such as 8+16+24"}


def parse_method(text: str) -> Method | Inside:
    """The method that ``NAME`` or ``NAME:OPTION=VALUE,OPTION=VALUE`` describes; the options are its fields.

    Names of methods count in any case, and so do their classes' names. Several layers are written ``8+16+24``.

    Raises:
        InvalidOption: an unknown method, an unknown option, or a value that its type does not allow.
    """
    known: dict[str, type[Method] | type[Inside]] = {**METHODS, **INSIDE}
    name, _, written = canonical(text).partition(":")
    if name not in known:
        raise unknown("method", name, known)
    method = known[name]
    hints = get_type_hints(method)
    allowed = [field.name for field in fields(method)]
    options = {}
    for part in written.split(",") if written else []:
        option, _, value = (piece.strip() for piece in part.partition("="))
        if option not in allowed:
            raise unknown(f"{name}'s option", option, allowed)
        if option in options:
            raise InvalidOption(f"option {option!r} of {name} is given twice: allowed is once")
        options[option] = _value(option, value, hints[option])
    return method(**options)


def canonical(text: str) -> str:
    """A method as text, named as its table names it: ``spare:beta=1`` for ``SPARE:beta=1``."""
    name, colon, written = text.strip().partition(":")
    classes = {kind.__name__.lower(): own for own, kind in {**METHODS, **INSIDE}.items()}
    lower = name.strip().lower()
    return f"{lower if lower in {**METHODS, **INSIDE} else classes.get(lower, name)}{colon}{written}"


def split_methods(text: str) -> list[str]:
    """The methods in a list such as ``none,spare:beta=0.5,relevance=llm,rrqr``, as text.

    A part with ``=`` and without ``:`` is a further option of the method before it.
    """
    specs: list[str] = []
    for part in text.split(","):
        if specs and "=" in part and ":" not in part:
            specs[-1] += f",{part.strip()}"
        else:
            specs.append(part.strip())
    return specs


def _value(option: str, text: str, hint: Any) -> Any:
    """``text`` as the first of the hint's types that it can be.

    Raises:
        InvalidOption: it can be none of them.
    """
    kinds = _kinds(hint)
    for kind in kinds:
        if kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
        if kind is tuple:
            parts = text.split("+")
            if all(part.isdecimal() for part in parts):
                return tuple(int(part) for part in parts)
            continue
        if text.lower() == str(kind).lower():
            return kind
    allowed = [NAMES[kind] if isinstance(kind, type) else str(kind).lower() for kind in kinds]
    raise InvalidOption(f"{option}={text!r}: allowed {'is' if len(allowed) == 1 else 'are'} {', '.join(allowed)}")


def _kinds(hint: Any) -> list[Any]:
    """A type hint, flat: number types as types; literals, booleans and None as values."""
    if get_origin(hint) in (Union, UnionType):
        return [kind for part in get_args(hint) for kind in _kinds(part)]
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if get_origin(hint) is tuple:
        return [tuple]
    if hint is bool:
        return [True, False]
    return [None] if hint is type(None) else [hint]
