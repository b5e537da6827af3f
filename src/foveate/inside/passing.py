"""One pass through the language model whose layers are given fewer and fewer tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foveate.hf import names
from foveate.inside.deciding import Left
from foveate.methods.inside import Inside


@dataclass(eq=False)
class Pass:
    """One pass.

    Attributes:
        cache: or None.
        prompt: columns of the prompt.
        cached: columns seen in passes before.
        entering: ``[B, L, D]``, what enters the first layer.
        deepstack: per layer ``[n, D]``, what is added behind it at the ``visual [B, L]`` columns.
        visual: bool, or None.
        scores: what was heard for the next drop, ``[B, W]``.
        raters: by method, the text that rates.
        left: what there is since the latest drop.
        given: what else its layers are given.
    """

    cache: Any
    prompt: int
    cached: int
    entering: Tensor
    deepstack: Sequence[Tensor]
    visual: Tensor | None
    scores: Tensor | None = None
    raters: dict[Inside, Tensor] = field(default_factory=dict)
    left: Left | None = None
    given: dict[str, Any] = field(default_factory=dict)
    _order: Tensor | None = None

    @property
    def new(self) -> int:
        """How many columns behind the prompt were seen, in this pass and before."""
        return self.cached + self.entering.shape[1] - self.prompt

    def go_on(self, config: Any, layer: int, left: Left, states: Tensor, options: dict[str, Any]) -> None:
        """From ``layer`` on there is what is left: positions and a mask for it, the same for all that follow.

        Args:
            config: the decoder's.
            layer: the first one.
            left: by its drop.
            states: what it is given.
            options: its other arguments, as the decoder has them.
        """
        self.left = left
        columns, real = self._columns(left, len(states))
        real = None if real is None else real.to(states.device)
        self.given = {"attention_mask": names.causal_mask(config, states, real, self.cache, layer)}
        if self.cached:
            return
        self.given["position_embeddings"] = tuple(
            torch.take_along_dim(part, columns[..., None].to(part.device), dim=-2)
            for part in options["position_embeddings"]
        )
        if options.get("position_ids") is not None:  # flash attention takes gaps for packed sequences
            counted = torch.arange(columns.shape[1], device=states.device)
            self.given["position_ids"] = counted.expand(len(columns), -1)

    def with_deepstack(self, layer: int, output: Tensor) -> Tensor:
        """What a layer returned, with what deepstack adds behind it to the visual tokens that are left."""
        assert self.visual is not None
        assert self.left is not None
        if self._order is None:  # the row of deepstack for each column
            self._order = (self.visual.flatten().cumsum(dim=0) - 1).clamp(min=0).view_as(self.visual)
        columns, real = self._columns(self.left, len(output))
        columns = columns.to(self._order.device)
        visual = torch.take_along_dim(self.visual, columns, dim=1)
        visual = visual if real is None else visual & real.to(visual.device)
        order = torch.take_along_dim(self._order, columns, dim=1).to(output.device)
        added = self.deepstack[layer].to(output.device, output.dtype)[order]
        return output + torch.where(visual.to(output.device)[..., None], added, 0)

    def _columns(self, left: Left, batch: int) -> tuple[Tensor, Tensor | None]:
        """``columns`` and ``real`` with the columns of later tokens behind, for a batch of copies of each row."""
        columns, real = left.columns, left.real
        if batch > len(columns):
            columns = columns.repeat_interleave(batch // len(columns), dim=0)
            real = None if real is None else real.repeat_interleave(batch // len(real), dim=0)
        if self.new:
            behind = torch.arange(self.prompt, self.prompt + self.new, device=columns.device).expand(batch, -1)
            columns = torch.cat([columns, behind], dim=1)
            if real is not None:
                real = torch.cat([real, torch.ones_like(behind, dtype=torch.bool)], dim=1)
        return columns, real
