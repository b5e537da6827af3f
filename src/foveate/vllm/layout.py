"""How an image's tokens lie, from the config and the image's own fields: the same in every process."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from foveate.families import FAMILIES, IMAGE
from foveate.families.layout import Layout


@dataclass(frozen=True)
class Described:
    """Stands for a transformers model where a family asks its config, and how it packs tiles."""

    config: Any

    @property
    def base_model(self) -> "Described":
        """Where a family looks for the packing."""
        return self

    def pack_image_features(self, *arguments: Any, **options: Any) -> Any:
        """What transformers makes of tiles; of its model, that reads nothing but the config."""
        from transformers import LlavaNextModel, LlavaOnevisionModel

        models = {"llava_next": LlavaNextModel, "llava_onevision": LlavaOnevisionModel}
        return models[self.config.model_type].pack_image_features(self, *arguments, **options)


def layout_of(config: Any, fields: Mapping[str, Tensor]) -> Layout:
    """The layout of one image: as many flags in ``locked`` as it has tokens.

    Args:
        config: the model's.
        fields: the image's, without a leading dimension: ``image_grid_thw [3]`` or ``image_sizes [2]``.
    """
    prompt = {
        name: fields[name][None].cpu()
        for name in ("image_grid_thw", "image_sizes")
        if fields.get(name) is not None
    }
    model = cast(Any, Described(config))
    return FAMILIES[config.model_type].layouts(model, prompt, IMAGE, [_square(config)])[0]


def _square(config: Any) -> int:
    """Tokens of an image that is one square of patches, as LLaVA-1.5's; other families do not ask."""
    if config.model_type != "llava":
        return 0
    side = int(config.vision_config.image_size) // int(config.vision_config.patch_size)
    return side * side + int(config.vision_feature_select_strategy == "full")
