"""Names of a package that are imported when they are first asked for."""

import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


def lazy(package: str, names: Mapping[str, str]) -> None:
    """Let a package hold names that it does not import yet.

    Args:
        package: its full name, ``__name__`` in its ``__init__.py``.
        names: by name, the module of the package that defines it; the name itself for a whole module is ``""``.
    """
    module = sys.modules[package]
    module.__dict__["_homes"] = dict(names)
    module.__class__ = _Lazy


class _Lazy(ModuleType):
    _homes: dict[str, str]

    def __getattr__(self, name: str) -> Any:
        home = self._homes.get(name) if name != "_homes" else None
        if home is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}", name=name, obj=self)
        module = import_module(f"{self.__name__}.{home or name}")
        self.__dict__[name] = getattr(module, name) if home else module
        return self.__dict__[name]

    def __setattr__(self, name: str, value: Any) -> None:
        # Python sets a package's attribute to each module of it that is imported. Where a function has the name of
        # its module, the function wins, whichever of the two is asked for first.
        if isinstance(value, ModuleType) and self._homes.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._homes})
