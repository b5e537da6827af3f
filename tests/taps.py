"""What is read off a vision tower's attention layer, one tensor per sequence that it attends over."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from foveate.hf import tower


@contextmanager
def attention_tap(layer: nn.Module, first: bool, joint: bool = False) -> Iterator[list[Tensor]]:
    """Collects `tower.attention`: when the block ends, ``[n]`` per sequence, in order."""
    captured: list[Tensor] = []
    with tower.tapped(layer) as calls:
        yield captured
    scores, lengths = tower.attention(calls, first, joint)
    captured.extend(torch.split(scores, lengths))


@contextmanager
def key_tap(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collects `tower.keys`: when the block ends, ``[n, heads, d]`` per sequence, in order."""
    captured: list[Tensor] = []
    with tower.tapped(layer) as calls:
        yield captured
    found, lengths = tower.keys(calls)
    captured.extend(torch.split(found, lengths))
