"""SparseVLM: text tokens that look at the image rate its tokens; of those dropped, some come back as clusters."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.errors import InvalidBudget, InvalidFeatures, InvalidOption
from foveate.methods.base import layer_index, layer_indices, one_of, precise, top
from foveate.methods.inside import Inside, Recycled
from foveate.select.clusters import density_peaks

# Layers after which the authors drop, of LLaVA-1.5's 32, and how many of 576 tokens they keep there, by the count
# that names the setting (score.py, v1).
DEPTH, LAYERS, TOKENS = 32, (2, 6, 15), 576
KEPT = {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)}
RECYCLED = 0.3  # of those dropped, this share (the best) is clustered,
CLUSTER = 10  # so many to a cluster


@dataclass(frozen=True)
class SparseVLM(Inside):
    """Drop, after three layers, what the text tokens that look at the image attend to least; cluster its best.

    ``keep`` names a row of the authors' table: 192, 128, 96 or 64 of 576. Other budgets lie between the rows, or
    between them and none or all, in proportion. Averaged over layers more are kept than it says
    (`Report.tokens_per_layer`).

    Attributes:
        layers: the layers after which tokens are dropped; None for 2, 6 and 15 of 32, in proportion to the depth.
        recycle_dropped: whether clusters of dropped tokens come back.
        faithful: see ``Differs``.

    Raises:
        InvalidOption: other layers.

    Source: arXiv 2410.04417, sections 3.2 to 3.4, and its code of version 1.
    Differs: where no text token rates above the mean (one token, or equal ones) all do; the authors have none
        then. Budgets outside the table are in proportion. With ``faithful`` these are errors, and of all one
        at least is dropped. Text tokens are those behind the row's last image; layers are in proportion to the
        depth. Clusters are exact means, at their centres' positions. No noise breaks ties between densities: the
        first token wins.
    """

    source: ClassVar[str] = "arXiv 2410.04417"
    complexity: ClassVar[str] = "O(M L D + N^2 D) a drop"

    layers: tuple[int, int, int] | None = None
    recycle_dropped: bool = True
    faithful: bool = False

    def __post_init__(self) -> None:
        one_of("recycle_dropped", self.recycle_dropped, (False, True))
        one_of("faithful", self.faithful, (False, True))
        if self.layers is None:
            return
        object.__setattr__(self, "layers", layer_indices("layers", self.layers, least=0))
        if len(self.layers) != len(LAYERS) or list(self.layers) != sorted(set(self.layers)):
            raise InvalidOption(f"layers={self.layers!r}: allowed are three ascending layer indices, or None")

    def places(self, depth: int) -> tuple[tuple[int, int], ...]:
        """Behind three layers, each hearing itself: the authors', scaled to the depth, or ``layers``."""
        for layer in self.layers or ():
            layer_index("layers", layer, least=0, depth=depth - 1)
        layers = self.layers or tuple(depth * layer // DEPTH for layer in LAYERS)
        return tuple((layer + 1, layer) for layer in layers)

    def counts(self, n: int, k: int, drops: int) -> list[int]:
        """The authors' counts, interpolated for other budgets and sizes.

        Raises:
            InvalidBudget: ``faithful``, and a budget that the authors have no counts for.
        """
        if self.faithful:
            if k not in KEPT:
                raise InvalidBudget(f"keep={k} with faithful=True: allowed are {', '.join(map(str, KEPT))}")
            return [min(n - 1, count) for count in KEPT[k]]
        rows = {0.0: (0, 0, 0), **{row / TOKENS: KEPT[row] for row in sorted(KEPT)}, 1.0: (TOKENS,) * 3}
        shares = list(rows)
        above = next(index for index, share in enumerate(shares) if k / n <= share)
        low, high = shares[above - 1], shares[above]
        part = (k / n - low) / (high - low)
        counts = [few + part * (many - few) for few, many in zip(rows[low], rows[high], strict=True)]
        return [min(n, max(1, round(count * n / TOKENS))) for count in counts]

    def raters(self, visual: Tensor, text: Tensor) -> Tensor | None:
        """The text tokens that visual tokens are more like than they are to the mean one."""
        likeness = (precise(visual) @ precise(text).mT).softmax(dim=-1).mean(dim=-2)
        above: Tensor = likeness > likeness.mean(dim=-1, keepdim=True)
        some = above.any(dim=-1, keepdim=True)
        if self.faithful and not bool(some.all()):  # the one option that waits for the device
            raise InvalidFeatures(
                f"{text.shape[-2]} text tokens, none of them above the mean: allowed is faithful=False"
            )
        return above | ~some

    def recycled(self, dropped: int) -> int:
        """One for each cluster of the best dropped tokens; none of fewer than two."""
        if not self.recycle_dropped or dropped < 2:
            return 0
        return (int(RECYCLED * dropped) + 1) // CLUSTER + 1

    def recycle(self, dropped: Tensor, scores: Tensor) -> Recycled | None:
        """The mean of each cluster of the best dropped tokens, at the place of its centre."""
        clusters = self.recycled(len(dropped))
        if not clusters:
            return None
        best = top(scores, int(RECYCLED * len(dropped)) + 1)
        states = precise(dropped[best])
        centres, assigned = density_peaks(states, clusters)
        member = (assigned[:, None] == torch.arange(clusters, device=assigned.device)).to(states.dtype)
        means = (member.T @ states) / member.sum(dim=0)[:, None]
        return Recycled(best[centres], means.to(dropped.dtype))
