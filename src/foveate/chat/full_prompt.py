"""What callers hand to generate() sees the prompt as it was, though the model is given a pruned one."""

from collections.abc import Callable
from functools import wraps
from types import new_class
from typing import Any, ClassVar

import torch
from torch import Tensor


class FullPrompt:
    """The tokens of the prompt before pruning, to stand in front of what is generated.

    Args:
        prompt: ``[B, L]``.
        width: columns of the pruned prompt.
    """

    def __init__(self, prompt: Tensor, width: int) -> None:
        self._prompt = prompt
        self._width = width

    def restored(self, sequences: Tensor) -> Tensor:
        """``[B * n, L + new]``: sequences of a pruned prompt, with the full one in its place."""
        full = self._prompt.to(sequences.device).repeat_interleave(len(sequences) // len(self._prompt), dim=0)
        return torch.cat([full, sequences[:, self._width :]], dim=1)

    def output(self, output: Any) -> Any:
        """What generate() returned, its sequences restored."""
        if isinstance(output, Tensor):
            return self.restored(output)
        output.sequences = self.restored(output.sequences)
        return output

    def shown(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The caller's functions among generate()'s arguments, such that they are shown restored sequences."""
        found: dict[str, Any] = {}
        for name in ("stopping_criteria", "logits_processor"):
            if arguments.get(name):
                given = arguments[name]
                found[name] = type(given)([self._of_batch(function) for function in given])
        if arguments.get("prefix_allowed_tokens_fn") is not None:
            found["prefix_allowed_tokens_fn"] = self._of_row(arguments["prefix_allowed_tokens_fn"])
        if arguments.get("streamer") is not None:
            found["streamer"] = _Streamer(arguments["streamer"], self._prompt)
        return found

    def _of_batch(self, function: Callable[..., Any]) -> Any:
        """Something of the caller's type that calls the caller's object; what that remembers stays with it."""

        @wraps(type(function).__call__)  # LogitsProcessorList asks the signature which arguments to pass
        def restoring(_self: Any, input_ids: Tensor, *rest: Any, **more: Any) -> Any:
            return function(self.restored(input_ids), *rest, **more)

        def elsewhere(_self: Any, name: str) -> Any:
            return getattr(function, name)

        maker: Any = type(function).__new__
        made_plainly = maker is object.__new__  # functions and partials are not
        bases = (_Shown, type(function)) if made_plainly else (_Shown,)
        body = {"__call__": restoring, "__getattr__": elsewhere, "caller": function}
        shown: Any = object.__new__(
            new_class(type(function).__name__, bases, exec_body=lambda space: space.update(body))
        )
        shown.__dict__ = getattr(function, "__dict__", {})
        return shown

    def _of_row(self, function: Callable[[int, Tensor], list[int]]) -> Callable[[int, Tensor], list[int]]:
        def shown(row: int, ids: Tensor) -> list[int]:
            return function(row, torch.cat([self._prompt[row].to(ids.device), ids[self._width :]]))

        return shown


def merging(merge: Callable[..., Any]) -> Callable[..., Any]:
    """generate()'s rule for which of its own processors and criteria give way, by the types of the caller's."""

    def merged(default: Any, custom: Any) -> Any:
        shown = {id(_caller(one)): one for one in custom}
        found = merge(default, type(default)([_caller(one) for one in custom]))
        return type(found)([shown.get(id(one), one) for one in found])

    return merged


def _caller(given: Any) -> Any:
    return type(given).caller if isinstance(given, _Shown) else given


class _Shown:
    """Stands for a caller's processor or criterion."""

    caller: ClassVar[Any]


class _Streamer:
    """generate() puts the prompt first."""

    def __init__(self, streamer: Any, prompt: Tensor) -> None:
        self._streamer = streamer
        self._prompt: Tensor | None = prompt.cpu()

    def put(self, value: Tensor) -> None:
        self._streamer.put(value if self._prompt is None else self._prompt)
        self._prompt = None

    def end(self) -> None:
        self._streamer.end()
