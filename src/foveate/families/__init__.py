"""The model families, and the table by which a model finds its own."""

from typing import TYPE_CHECKING

from packaging.version import Version

from foveate.errors import InvalidOption, UnsupportedModel
from foveate.families.anyres import LlavaNext, LlavaNextVideo, LlavaOnevision
from foveate.families.base import AS_IT_IS, DOWN_AND_UP, IMAGE, PIXELS, VIDEO, Family
from foveate.families.gemma import Gemma3, Gemma4, PaliGemma
from foveate.families.generic import Generic
from foveate.families.layout import View
from foveate.families.llava import Llava
from foveate.families.mistral3 import Mistral3
from foveate.families.rope import Glm4v, Qwen2VL, Qwen3VL, Qwen25VL
from foveate.families.tiles import Idefics3, InternVL, SmolVLM
from foveate.hf import names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# By `config.model_type`.
FAMILIES: dict[str, Family] = {
    "llava": Llava(),
    "llava_next": LlavaNext(),
    "llava_next_video": LlavaNextVideo(),
    "llava_onevision": LlavaOnevision(),
    "qwen2_vl": Qwen2VL(),
    "qwen2_5_vl": Qwen25VL(),
    "qwen3_vl": Qwen3VL(),
    "glm4v": Glm4v(),
    "internvl": InternVL(),
    "idefics3": Idefics3(),
    "smolvlm": SmolVLM(),
    "gemma3": Gemma3(),
    "gemma4": Gemma4(),
    "mistral3": Mistral3(),
    "paligemma": PaliGemma(),
}
GENERIC = "generic"


def family_of(model: "PreTrainedModel", asked: str | None = None) -> Family:
    """The family of a model, by its ``config.model_type`` and vision tower, or the generic one if asked for.

    Raises:
        UnsupportedModel: there is none; the message lists the supported ones.
        InvalidOption: ``asked`` is neither None nor ``generic``, or there is a family.
    """
    if asked not in (None, GENERIC):
        raise InvalidOption(f"family={asked!r}: allowed are None and {GENERIC!r}")
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    tower = getattr(getattr(config, "vision_config", None), "model_type", "none")
    import transformers  # `import foveate` does not load it

    if not hasattr(model, "generate"):
        raise UnsupportedModel(
            f"{type(model).__name__} cannot generate: allowed is a model for conditional generation"
        )
    if asked == GENERIC:
        names.check_model(model)
    family = FAMILIES.get(kind)
    proven = family is not None and (not family.towers or tower in family.towers)
    if asked == GENERIC:
        if proven:
            raise InvalidOption(f"family={GENERIC!r} for model type {kind!r}: allowed is None, it has a family")
        return Generic()
    if family is None or not proven:
        known = ", ".join(
            f"{name} ({' or '.join(f.towers)})" if f.towers else name for name, f in FAMILIES.items()
        )
        raise UnsupportedModel(
            f"model type {kind!r} with vision tower {tower!r}: supported are {known}; "
            f"family={GENERIC!r} at your own risk"
        )
    if Version(transformers.__version__) < Version(family.since):
        raise UnsupportedModel(
            f"{family.name} with transformers {transformers.__version__}: supported from {family.since} on"
        )
    names.check_model(model)
    return family


__all__ = [
    "AS_IT_IS",
    "DOWN_AND_UP",
    "FAMILIES",
    "GENERIC",
    "IMAGE",
    "PIXELS",
    "VIDEO",
    "Family",
    "View",
    "family_of",
]
