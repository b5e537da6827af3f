"""Results that depend on an object and a key, remembered for as long as the object lives."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import wraps
from threading import Lock
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

Owner = TypeVar("Owner")
Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


def remembered(
    last: int,
) -> Callable[[Callable[[Owner, Key], Result]], Callable[[Owner, Key], Result]]:
    """A decorator for ``function(owner, key)`` that remembers the ``last`` results of each owner.

    Owners are told apart by identity and held weakly, so that a result lives no longer than its owner.

    Args:
        last: how many results per owner; the one that was not asked for longest is forgotten first.
    """

    def decorate(function: Callable[[Owner, Key], Result]) -> Callable[[Owner, Key], Result]:
        results: WeakKeyDictionary[Any, OrderedDict[Any, Result]] = WeakKeyDictionary()
        lock = Lock()

        @wraps(function)
        def recall(owner: Owner, key: Key) -> Result:
            with lock:
                known = results.setdefault(owner, OrderedDict())
                if key in known:
                    known.move_to_end(key)
                    return known[key]
            result = function(owner, key)  # without the lock: it may take long, and may ask for others
            with lock:
                known[key] = result
                while len(known) > last:
                    known.popitem(last=False)
            return result

        return recall

    return decorate
