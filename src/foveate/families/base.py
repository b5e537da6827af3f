"""What a model family must tell; all else is the same for every family."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Family(ABC):
    """The facts in which one ``config.model_type`` differs from the others.

    Attributes:
        name: for people.
        towers: the vision towers (their ``model_type``) this family is proven with.
        resizes: whether they take images of any whole number of patches (`resized`).
    """

    name: str
    towers: tuple[str, ...]
    resizes: bool = False

    @abstractmethod
    def grid(self, model: "PreTrainedModel", n: int) -> tuple[int, int]:
        """``(height, width)`` of the tokens of an image with ``n`` tokens, locked rows left out."""

    @abstractmethod
    def locked(self, model: "PreTrainedModel", features: Tensor) -> Tensor:
        """``[N]`` bool: the rows of ``features [N, D]`` that are never dropped."""

    @abstractmethod
    def cls_layer(self, model: "PreTrainedModel") -> nn.Module | None:
        """The attention (``q_proj``, ``k_proj``, ``num_heads``, ``scale``) whose row 0 is the CLS query.

        That of the layer whose output the projector reads; None where the tower has no CLS token.
        """

    @abstractmethod
    def projector(self, model: "PreTrainedModel") -> nn.Module:
        """The module that takes the selected patch states ``[images, N, Dv]``."""

    def resized(
        self, model: "PreTrainedModel", arguments: dict[str, Any], size: tuple[int, int]
    ) -> dict[str, Any]:
        """``arguments`` of the image encoder for the same images, resized to ``(height, width)`` tokens."""
        raise NotImplementedError(f"{self.name} does not resize")
