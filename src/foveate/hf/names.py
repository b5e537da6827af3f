"""Names of transformers that move: each is found here, by signature or attribute, never by a version number.

A name that cannot be found is an `UnsupportedModel` that says what was looked for and which version is installed.
So a renamed argument is a clear refusal, and never an option that is quietly ignored. Every name has a test in
``tests/test_seams.py``.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache, lru_cache
from importlib import import_module
from typing import Any

from foveate.errors import InvalidInputs, UnsupportedModel

# The argument and the output that hold the KV cache, newest first. 5.24 renamed it.
CACHE = ("cache", "past_key_values")
# What a model's forward is given in place of pixels.
ENCODED = "mm_encoder_outputs"
# Arguments of a decoder's forward for models that add visual features behind its first layers.
DEEPSTACK, VISUAL = "deepstack_visual_embeds", "visual_pos_masks"
# Where a model keeps its vision tower's layers, and a layer its attention.
TOWER_LAYERS = (
    "vision_tower.transformer.layers",
    "vision_tower.vision_model.encoder.layers",
    "vision_tower.encoder.layers",
    "vision_tower.encoder.layer",
    "vision_model.encoder.layers",
    "visual.blocks",
)
TOWER_ATTENTION = ("self_attn", "attention", "attn")
# In each modeling file: the table of attention functions, which it may have changed for itself, and the eager one.
ATTENTION_TABLE, EAGER_ATTENTION = "ALL_ATTENTION_FUNCTIONS", "eager_attention_forward"
# Whether a mask may be left out after a look at the padding; since 5.24.
SKIP = "allow_is_causal_skip"
# Where generate() decides which of its own processors and criteria give way to the caller's.
MERGE = "_merge_criteria_processor_list"
_ABSENT = object()


def at(owner: Any, *paths: str) -> Any:
    """What the first of ``paths`` that exists leads to: attributes of ``owner``, joined by dots.

    Raises:
        UnsupportedModel: there is none of them.
    """
    for path in paths:
        found = owner
        for name in path.split("."):
            found = getattr(found, name, _ABSENT)
            if found is _ABSENT:
                break
        else:
            return found
    raise _unknown(type(owner).__name__, paths)


def imported(module: str, name: str) -> Any:
    """``transformers.<module>.<name>``.

    Raises:
        UnsupportedModel: it is not there.
    """
    try:
        return getattr(import_module(f"transformers.{module}"), name)
    except (ImportError, AttributeError) as error:
        raise _unknown(f"transformers.{module}", (name,)) from error


@lru_cache(maxsize=256)  # functions of classes: a few per model type
def parameter(function: Callable[..., Any], *names: str) -> str:
    """The first of ``names`` that ``function`` takes by its own signature.

    Raises:
        UnsupportedModel: it takes none of them.
    """
    parameters = inspect.signature(function).parameters
    for name in names:
        if name in parameters:
            return name
    raise _unknown(f"{function.__qualname__}()", names)


def cache_argument(model: Any) -> str:
    """The name by which a model, a decoder or a layer takes its cache.

    Raises:
        UnsupportedModel: by none that is known.
    """
    return parameter(type(model).forward, *CACHE)


def check_model(model: Any) -> None:
    """Refuse a model whose forward knows its cache, or encoded images, by names that are not known here.

    Raises:
        UnsupportedModel: it does.
    """
    cache_argument(model)
    parameter(type(model).forward, ENCODED)


@lru_cache(maxsize=256)
def _encoder_arguments(encoder: Callable[..., Any]) -> dict[str, bool]:
    parameters = inspect.signature(encoder).parameters.values()
    return {
        parameter.name: parameter.default is parameter.empty
        for parameter in list(parameters)[1:]
        if parameter.kind is not parameter.VAR_KEYWORD and parameter.name != "return_dict"
    }


def encoder_arguments(model: Any, kind: str) -> dict[str, bool]:
    """The inputs that an image or video encoder consumes, and whether it must have them, by its own signature.

    generate() asks the signature, too. A model without this encoder consumes nothing.
    """
    encoder = getattr(type(model.base_model), f"get_{kind}_features", None)
    return {} if encoder is None else _encoder_arguments(encoder)


def features(output: Any) -> Any:
    """The features in what an image encoder returned: tensors, nested as the family has it."""
    return at(output, "pooler_output")


def deepstack(model: Any, output: Any) -> Sequence[Any]:
    """Per layer, the features that the language model adds behind its first layers; none of most models."""
    vision = getattr(model.config, "vision_config", None)
    if not getattr(vision, "deepstack_visual_indexes", None):
        return ()
    layers: Sequence[Any] = at(output, "deepstack_features")
    return layers


def tower_attention(model: Any, index: int) -> Any:
    """The attention module of a vision tower's layer."""
    return at(at(model.base_model, *TOWER_LAYERS)[index], *TOWER_ATTENTION)


def rope_index(model: Any) -> Callable[..., Any] | None:
    """The model's own rule for positions of several axes; None of models that count attended columns."""
    if not _has_axes(model):
        return None
    rule: Callable[..., Any] = at(model.base_model, "get_rope_index")
    return rule


def keep_rope_deltas(model: Any, deltas: Any) -> None:
    """Tell a model with positions of several axes where the next token stands: steps without positions read it."""
    if _has_axes(model):
        at(model.base_model, "rope_deltas")
        model.base_model.rope_deltas = deltas


def _has_axes(model: Any) -> bool:
    """Whether positions have several axes: their rotary sections are in the configuration."""
    text = model.config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    return "mrope_section" in str(rope) or hasattr(model.base_model, "get_rope_index")


def attention_functions() -> Any:
    """The table by which attention layers find their function."""
    return imported("modeling_utils", "AttentionInterface")


def uneven(kv_cache: Any) -> bool:
    """Whether a cache's layers that see everything hold different numbers of tokens."""
    layers = () if kv_cache is None else at(kv_cache, "layers")
    return len({int(layer.get_seq_length()) for layer in layers if not getattr(layer, "is_sliding", True)}) > 1


def plain_keys(layer: Any) -> Any:
    """``[B, H, T, d]``, the keys of a cache's layer in the order of their tokens; None where they lie otherwise.

    Sliding layers shift them, quantized ones keep the latest alone.
    """
    keys = getattr(layer, "keys", None)
    moved = getattr(layer, "is_sliding", True) or hasattr(layer, "_quantized_keys")
    return None if moved or getattr(keys, "ndim", 0) != 4 else keys


def flash(model: Any) -> bool:
    """Whether the language model's attention runs a flash kernel."""
    used = at(model.config.get_text_config(), "_attn_implementation")
    return "flash" in str(used)


def given_cache(arguments: Mapping[str, Any]) -> Any:
    """The cache among a caller's arguments, by either name; None where none is given.

    Raises:
        InvalidInputs: by both names.
    """
    given = [name for name in CACHE if arguments.get(name) is not None]
    if len(given) > 1:
        raise InvalidInputs(f"{' and '.join(given)} given together: allowed is one, they are the same argument")
    return arguments[given[0]] if given else None


def without_cache(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The same arguments, less the cache."""
    return {name: value for name, value in arguments.items() if name not in CACHE}


def returned_cache(output: Any) -> tuple[str, Any]:
    """The name and the value of the cache in what a model or generate() returned.

    The value is None where no cache was asked for, and where ``output`` is no such output.

    Raises:
        UnsupportedModel: an output of transformers without a field for it.
    """
    if not is_dataclass(output):
        attributes = getattr(output, "__dict__", {})  # a tensor or a tuple has none
        return next(((name, attributes[name]) for name in CACHE if name in attributes), (CACHE[0], None))
    known = [field.name for field in fields(output) if field.name in CACHE]
    if not known:
        raise _unknown(type(output).__name__, CACHE)
    return known[0], getattr(output, known[0])


def cache_in(output: Any) -> Any:
    """The cache in what a model's forward returned, a tuple or an output; None where there is none."""
    if isinstance(output, tuple):
        return next((part for part in output if hasattr(part, "get_seq_length")), None)
    return returned_cache(output)[1]


def causal_mask(config: Any, states: Any, attended: Any, kv_cache: Any, layer: int) -> Any:
    """The mask that a decoder of transformers makes for ``layer``; None where its attention needs none.

    Args:
        config: the decoder's.
        states: ``[B, W, D]``, what enters the layer.
        attended: ``[B, W]`` bool, columns that are no padding; None where there is none.
        kv_cache: or None.
        layer: whose share of the cache counts.

    Raises:
        UnsupportedModel: the function is not there, or takes other arguments.
    """
    create = imported("masking_utils", "create_causal_mask")
    states_name, cache_name = parameter(create, "inputs_embeds", "input_embeds"), parameter(create, *CACHE)
    options = {"config": config, states_name: states, "attention_mask": attended, cache_name: kv_cache}
    if attended is not None and SKIP in inspect.signature(create).parameters:  # whoever knows of padding need not
        options[SKIP] = False  # have it looked for on the device
    return create(**options, **{parameter(create, "layer_idx"): layer})


@cache
def _version() -> str:
    import transformers  # `import foveate` does not load it

    return str(transformers.__version__)


def _unknown(where: str, names: tuple[str, ...]) -> UnsupportedModel:
    looked = " or ".join(map(repr, names))
    return UnsupportedModel(
        f"{where} has no {looked} in transformers {_version()}: supported are versions that have"
        f"{' one of them' if len(names) > 1 else ' it'}"
    )
