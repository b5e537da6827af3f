"""What callers hand to generate() sees the prompt as it was, though the model is given a pruned one."""

from collections.abc import Callable
from typing import Any

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

    def _of_batch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def shown(input_ids: Tensor, *rest: Any, **more: Any) -> Any:
            return function(self.restored(input_ids), *rest, **more)

        return shown

    def _of_row(self, function: Callable[[int, Tensor], list[int]]) -> Callable[[int, Tensor], list[int]]:
        def shown(row: int, ids: Tensor) -> list[int]:
            return function(row, torch.cat([self._prompt[row].to(ids.device), ids[self._width :]]))

        return shown


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
