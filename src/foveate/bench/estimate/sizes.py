"""A model's dimensions, from its configuration alone: it is built without memory and its weights are counted."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from foveate import mini
from foveate.bench.checkpoint import check_type
from foveate.bench.defaults import MINI
from foveate.bench.speed.presets import PRESETS
from foveate.errors import InvalidInputs, UnsupportedModel, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Sizes:
    """What the time and memory of a model depend on.

    Attributes:
        decoder: weights that every token of the prompt is multiplied with.
        head: weights of the output embedding.
        tower: weights of the vision tower and the projector.
        total: all weights, with those that are only looked up.
        layers: decoder layers.
        attention: width of all query heads of a layer together.
        cache: numbers that a token leaves in the cache of one layer, keys and values.
        tower_layers: of the vision tower.
        tower_width: of its tokens.
        merge: patches that become one visual token.
        tile: patches of one tile of a tower of fixed size; None for a tower of any size.
        window: patches that see each other in a windowed layer; None without windows.
        whole: tower layers without windows.
        tokens: visual tokens of an image, where none are asked for.
    """

    decoder: int
    head: int
    tower: int
    total: int
    layers: int
    attention: int
    cache: int
    tower_layers: int
    tower_width: int
    merge: int
    tile: int | None
    window: int | None
    whole: int
    tokens: int

    @classmethod
    def of(cls, name: str) -> "Sizes":
        """The sizes of a preset, of a folder with a ``config.json``, or of a model id.

        Raises:
            InvalidInputs: there is no such model, or its configuration cannot be built.
            UnsupportedModel: its type has no family, or it mixes experts.
        """
        config = _config(name)
        text, vision = config.get_text_config(), getattr(config, "vision_config", None)
        if vision is None or _first(text, 0, "num_experts", "num_local_experts"):
            reason = "no vision tower" if vision is None else "a mixture of experts"
            raise UnsupportedModel(f"model {name!r}: {reason} is not estimated; allowed are dense models with one")
        heads = text.num_attention_heads
        head_dim = _first(text, text.hidden_size // heads, "head_dim")
        merge, tile = _merge(config, vision), _tile(vision)
        depth = _first(vision, 0, "num_hidden_layers", "depth")
        window = _window(vision)
        own = PRESETS[name].tokens if name in PRESETS else (tile or 1024 * merge) // merge
        return cls(
            **_weights(name, config),
            layers=text.num_hidden_layers,
            attention=heads * head_dim,
            cache=2 * _first(text, heads, "num_key_value_heads") * head_dim,
            tower_layers=depth,
            tower_width=_first(vision, 0, "embed_dim", "hidden_size"),
            merge=merge,
            tile=tile,
            window=window,
            whole=depth if window is None else len(vision.fullatt_block_indexes),
            tokens=own,
        )


def _config(name: str) -> "PreTrainedConfig":
    if name in PRESETS:
        return PRESETS[name].config()
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    path = str(mini.PATH) if name == MINI else name
    check_type(path)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(path)
    except (OSError, ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise InvalidInputs(f"model {name!r}: its config.json cannot be read ({first_line(error)})") from error
    return config


def _weights(name: str, config: "PreTrainedConfig") -> dict[str, int]:
    """Weights of matrices and convolutions, by where they lie; embeddings are looked up, which costs nothing."""
    from transformers import AutoModelForImageTextToText
    from transformers.initialization import no_init_weights

    try:
        with torch.device("meta"), no_init_weights():
            model: Any = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    except (ImportError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise InvalidInputs(f"model {name!r}: its config.json builds no model ({first_line(error)})") from error
    model.tie_weights()
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    inside = set(decoder.modules())
    outside = [module for module in model.modules() if module not in inside and module is not head]
    return {
        "decoder": _multiplied(inside),
        "head": head.weight.numel(),
        "tower": _multiplied(outside),
        "total": model.num_parameters(),
    }


def _multiplied(modules: Any) -> int:
    return sum(
        weight.numel()
        for module in modules
        if not isinstance(module, torch.nn.Embedding)
        for weight in module.parameters(recurse=False)
        if weight.dim() >= 2
    )


def _merge(config: Any, vision: Any) -> int:
    """Patches of one visual token; every family names it differently."""
    side = _first(vision, None, "spatial_merge_size") or _first(config, None, "spatial_merge_size", "scale_factor")
    ratio = _first(config, None, "downsample_ratio")
    tokens = _first(config, None, "mm_tokens_per_image")
    if tokens:
        return int((_tile(vision) or tokens) // tokens)
    if ratio:
        return int(round(1 / ratio) ** 2)
    return int(side or _first(vision, 1, "pooling_kernel_size")) ** 2


def _tile(vision: Any) -> int | None:
    edge, patch = _side(getattr(vision, "image_size", None)), _side(vision.patch_size)
    # Of a tower that takes any size, the entry is a limit or the size of its table of positions.
    if edge is None or patch is None or vision.model_type == "pixtral" or hasattr(vision, "spatial_merge_size"):
        return None
    return int(edge // patch) ** 2


def _window(vision: Any) -> int | None:
    if not hasattr(vision, "fullatt_block_indexes"):
        return None
    return int(vision.window_size // vision.patch_size) ** 2


def _side(value: Any) -> int | None:
    """Of a square, which some configurations write as two equal sides."""
    return value if value is None or isinstance(value, int) else int(value[0])


def _first(config: Any, default: Any, *names: str) -> Any:
    """The first of these entries that the configuration has."""
    return next((value for name in names if (value := getattr(config, name, None)) is not None), default)
