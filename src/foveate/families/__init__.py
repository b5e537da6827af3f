"""The model families, and the table by which a model finds its own."""

from typing import TYPE_CHECKING

from foveate.errors import UnsupportedModel
from foveate.families.base import Family
from foveate.families.llava import Llava

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FAMILIES: dict[str, Family] = {"llava": Llava()}


def family_of(model: "PreTrainedModel") -> Family:
    """The family of a model, by its ``config.model_type`` and vision tower.

    Raises:
        UnsupportedModel: there is none; the message lists the supported ones.
    """
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    tower = getattr(getattr(config, "vision_config", None), "model_type", "none")
    family = FAMILIES.get(kind)
    if family is None or tower not in family.towers or not hasattr(model, "generate"):
        known = ", ".join(f"{name} ({' or '.join(f.towers)})" for name, f in FAMILIES.items())
        raise UnsupportedModel(f"model type {kind!r} with vision tower {tower!r}: supported are {known}")
    return family


__all__ = ["FAMILIES", "Family", "family_of"]
