"""Any other model that takes encoded images, without the facts that only a family knows."""

from typing import TYPE_CHECKING

from foveate.families.base import IMAGE, VIDEO, Family, Prompt
from foveate.families.layout import Layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Generic(Family):
    """A model type of its own risk: what the encoder returns as one entry counts as an image.

    Nothing is known of grids, so tokens lie in one line, and none of attention in the tower.
    """

    name = "generic"
    kinds = (IMAGE, VIDEO)
    tokens = "one line"
    drops_inside = False
    resizes = None

    def tower_layer(self, model: "PreTrainedModel") -> int | None:
        """Nothing is known of the tower."""
        return None

    def layout(self, model: "PreTrainedModel", prompt: Prompt, kind: str, index: int, n: int) -> Layout:
        """See `Family.layout`."""
        return Layout.of((1, n))
