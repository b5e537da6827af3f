"""PyramidDrop: fewer and fewer visual tokens the deeper the layers."""

from dataclasses import dataclass
from typing import ClassVar

from foveate.errors import InvalidBudget, InvalidOption
from foveate.methods.base import layer_index, layer_indices, one_of
from foveate.methods.inside import Inside


@dataclass(frozen=True)
class PyramidDrop(Inside):
    """Drop an equal share at each of some layers, ranked by the last token's attention in that layer.

    ``keep`` is what is left after the last drop: ``keep=0.125`` of 576 with three drops keeps 288, 144 and 72, the
    authors' ratio of 0.5.

    Attributes:
        layers: indices of the layers before which tokens are dropped, ascending, 1 or more; None for the quarters
            of the language model's depth (8, 16 and 24 of 32, the authors').
        faithful: see ``Differs``.

    Raises:
        InvalidOption: other layers.

    Source: arXiv 2410.17247, section 3.2.
    Differs: counts fall by ``(keep / N) ** (1 / drops)`` each, rounded; the authors' fall by a half each, rounded
        down: with ``faithful``, they are those, and ``keep`` must be what they leave. ``keep`` counts per image.
        Ties go to the first token.
    """

    source: ClassVar[str] = "arXiv 2410.17247"
    complexity: ClassVar[str] = "O(L D) a drop"

    layers: tuple[int, ...] | None = None
    faithful: bool = False

    def __post_init__(self) -> None:
        one_of("faithful", self.faithful, (False, True))
        if self.layers is None:
            return
        object.__setattr__(self, "layers", layer_indices("layers", self.layers))
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise InvalidOption(f"layers={self.layers!r}: allowed are ascending layer indices, or None")

    def places(self, depth: int) -> tuple[tuple[int, int], ...]:
        """Before the last three quarters of the depth, or ``layers``; each hears the layer it comes before."""
        layers = self.layers or tuple(sorted({max(1, depth * quarter // 4) for quarter in (1, 2, 3)}))
        for layer in layers:
            layer_index("layers", layer, depth=depth)
        return tuple((layer, layer) for layer in layers)

    def counts(self, n: int, k: int, drops: int) -> list[int]:
        """Falling geometrically to ``k``; halving where ``faithful``.

        Raises:
            InvalidBudget: ``faithful``, and another budget than halving comes to.
        """
        if not self.faithful:
            return [max(k, round(n * (k / n) ** (drop / drops))) for drop in range(1, drops)] + [k]
        counts = [max(1, int(n * 0.5**drop)) for drop in range(1, drops + 1)]
        if k != counts[-1]:
            raise InvalidBudget(f"{k} of {n} tokens with faithful=True: allowed are the authors' {counts[-1]}")
        return counts
