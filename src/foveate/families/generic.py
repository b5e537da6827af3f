"""Any other model that takes encoded images, without the facts that only a family knows."""

from typing import TYPE_CHECKING

from torch import Tensor

from foveate.families.base import IMAGE, VIDEO, Family, Prompt, base_of
from foveate.families.layout import Layout
from foveate.families.rope import Qwen2VL

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Generic(Family):
    """A model type of its own risk: what the encoder returns as one entry counts as an image.

    Nothing is known of grids, so tokens lie in one line, and none of attention in the tower.
    """

    name = "generic"
    kinds = (IMAGE, VIDEO)
    tokens = "one line"

    def layout(self, model: "PreTrainedModel", prompt: Prompt, kind: str, index: int, n: int) -> Layout:
        """See `Family.layout`."""
        return Layout.of((1, n))

    def positions(self, model: "PreTrainedModel", prompt: Prompt) -> Tensor | None:
        """See `Family.positions`: the model's own, if it has any."""
        return Qwen2VL().positions(model, prompt) if hasattr(base_of(model), "get_rope_index") else None
