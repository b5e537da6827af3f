"""Kept tokens keep their positions: each row carries its own to the forward pass that reads it.

vLLM's runner numbers the prompt before its images are encoded, when nobody knows which tokens will be kept. So all
kept tokens of an image get the position of its first token there; where each stood, relative to it, travels in six
columns behind its features, through vLLM's encoder cache, and is added in the model's forward.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

AXES = 3
COLUMNS = 2 * AXES
BYTE = 256  # rows may be bfloat16, which holds whole numbers to 256


def with_offsets(rows: Tensor, offsets: Tensor) -> Tensor:
    """``rows [k, W]`` with ``offsets [k, 3]`` behind them, as high and low bytes: ``[k, W + 6]``."""
    high = torch.div(offsets, BYTE, rounding_mode="floor")
    return torch.cat([rows, high.to(rows.dtype), (offsets - high * BYTE).to(rows.dtype)], dim=1)


def split_offsets(rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The rows ``[k, width]`` and offsets ``[k, 3]`` of what may be `with_offsets`; offsets of 0 if it is not."""
    if rows.shape[-1] == width:
        return rows, rows.new_zeros(len(rows), AXES, dtype=torch.long)
    columns = rows[:, width:].long()
    return rows[:, :width], columns[:, :AXES] * BYTE + columns[:, AXES:]


class Offsets(nn.Module):
    """The offsets of one step's tokens, in buffers that stay where they are: CUDA graphs read them in place.

    Args:
        tokens: most tokens of a step.
    """

    offsets: Tensor
    positions: Tensor

    def __init__(self, tokens: int) -> None:
        super().__init__()
        # One column more, as in vLLM's own buffers of positions: slices are then never contiguous, and a compiled
        # model is not specialised to one that is.
        for name in ("offsets", "positions"):
            self.register_buffer(name, torch.zeros(AXES, tokens + 1, dtype=torch.long), persistent=False)

    def write(self, rows: Sequence[Tensor], is_multimodal: Tensor, width: int) -> list[Tensor]:
        """Take the offsets off the rows of a step, and hold them until its forward.

        Args:
            rows: ``[n, width]`` or ``[n, width + 6]`` per image or part of one, in the order of the step's tokens.
            is_multimodal: ``[L]`` bool, where they go.
            width: of rows without offsets.
        """
        step = self.offsets[:, : len(is_multimodal)]
        step.zero_()
        if all(part.shape[-1] == width for part in rows):  # nothing of this step is pruned
            return list(rows)
        parts = [split_offsets(part, width) for part in rows]
        found = torch.cat([offsets for _, offsets in parts])
        # vLLM's mask is in pinned memory: neither its copy nor the scatter waits for a GPU.
        where = is_multimodal.to(step.device, non_blocking=True).expand_as(step)
        step.masked_scatter_(where, found.to(step.device, non_blocking=True).T.contiguous())
        return [part for part, _ in parts]

    def moved(self, positions: Tensor) -> Tensor:
        """``positions [3, L]`` with the offsets of this step added, which are then forgotten."""
        length = positions.shape[-1]
        moved = self.positions[:, :length]
        torch.add(positions, self.offsets[:, :length], out=moved)
        self.offsets[:, :length].zero_()
        return moved
