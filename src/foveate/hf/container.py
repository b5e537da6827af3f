"""Encoder outputs that survive generate(): repeated for beams, moved by accelerate, read by every family."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers.utils import ModelOutput


class FeatureRows(list[Tensor]):
    """Features ``[n, D]``, one entry per batch row, that also answer where a family reads one tensor.

    generate() repeats whole entries for beams, which is right whatever each row holds; a tensor of several
    rows it would have to cut. Families that expect a tensor move it (``.to(device, dtype)``) or flatten it first.
    """

    def to(self, device: Any = None, dtype: Any = None, **options: Any) -> Any:
        """With a dtype, as families ask: one tensor ``[1, sum of n, D]``. Without one: the same rows, moved."""
        rows = [row.to(device=device, dtype=dtype, **options) for row in self]
        return FeatureRows(rows) if dtype is None else torch.cat(rows)[None]

    def flatten(self, start: int = 0, end: int = -1) -> Tensor:
        """``[sum of n, D]``."""
        return torch.cat(self)

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self[0].device


def encoder_output(rows: Iterable[Tensor], deepstack: Iterable[Iterable[Tensor]]) -> "ModelOutput":
    """A fresh encoder output: generate() changes it in place.

    Args:
        rows: ``[n, D]`` per batch row.
        deepstack: per layer, the same; empty for models without.
    """
    layers = [list(layer) for layer in deepstack]
    output: ModelOutput = _output_type()(FeatureRows(rows), layers or None)
    return output


@cache
def _output_type() -> Any:
    """Made when first needed: `import foveate` must not load transformers."""
    from transformers.utils import ModelOutput

    @dataclass
    class EncoderOutput(ModelOutput):  # type: ignore[misc]
        pooler_output: Any = None
        deepstack_features: Any = None

        def __setattr__(self, name: str, value: Any) -> None:
            if name == "pooler_output" and isinstance(value, list):  # generate() assigns a plain one
                value = FeatureRows(value)
            super().__setattr__(name, value)

        def __reduce__(self) -> Any:  # a class made here is not found by its name
            return encoder_output, (self.pooler_output, self.deepstack_features or ())

    return EncoderOutput
