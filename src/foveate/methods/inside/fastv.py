"""FastV: after two layers, the visual tokens that the last token attends to least are of no use."""

from dataclasses import dataclass
from typing import ClassVar

from foveate.methods.base import layer_index, one_of
from foveate.methods.inside import Inside


@dataclass(frozen=True)
class FastV(Inside):
    """Drop, before a layer, all tokens but those that the prompt's last one attends to most in the layer before.

    Attributes:
        layer: index of the first layer that does without them, 1 or more.
        faithful: nothing differs: it is the authors' choice either way.

    Raises:
        InvalidOption: another layer.

    Source: arXiv 2403.06764, section 4 (K = ``layer``, the attention of layer K - 1).
    Differs: ``keep`` counts per image, where the authors have one image. Scores come from queries and keys, so
        that any attention backend serves; the authors switch to eager attention. Ties go to the first token.
    """

    source: ClassVar[str] = "arXiv 2403.06764"
    complexity: ClassVar[str] = "O(L D)"
    nested: ClassVar[bool] = True

    layer: int = 2
    faithful: bool = False

    def __post_init__(self) -> None:
        layer_index("layer", self.layer)
        one_of("faithful", self.faithful, (False, True))

    def places(self, depth: int) -> tuple[tuple[int, int], ...]:
        """One drop, before ``layer``, which hears the layer before it."""
        layer_index("layer", self.layer, depth=depth)
        return ((self.layer, self.layer - 1),)

    def counts(self, n: int, k: int, drops: int) -> list[int]:
        """``k`` at its only drop."""
        return [k]
