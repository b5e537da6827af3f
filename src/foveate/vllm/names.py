"""The names that the plugin takes from vLLM and that vLLM does not document, so that a release may move them.

They are looked for by attribute and by parameter, never by version number, before anything is registered.
"""

import inspect
from collections.abc import Iterable
from importlib import import_module
from operator import attrgetter
from typing import Any

Row = tuple[str, str, tuple[str, ...]]

PROCESSING = "vllm.multimodal.processing"
PROCESSOR = "BaseMultiModalProcessor"
MODELS = "vllm.model_executor.models"

# By these a model is replaced or refused. A row has a module, a name in it, and what that name must have:
# a function these parameters, anything else these attributes.
TABLES: tuple[Row, ...] = (
    (MODELS, "ModelRegistry.register_model", ("model_arch", "model_cls")),
    (MODELS, "ModelRegistry.get_supported_archs", ()),
    (f"{MODELS}.config", "MODELS_CONFIG_MAP", ()),
    (f"{MODELS}.config", "VerifyAndUpdateConfig.verify_and_update_model_config", ("model_config",)),
    (f"{MODELS}.config", "VerifyAndUpdateConfig.verify_and_update_config", ("vllm_config",)),
    ("vllm.config", "ModelConfig", ("hf_config", "architecture", "multimodal_config")),
    ("vllm.config", "MultiModalConfig", ("mm_processor_kwargs",)),
)
# The front end's hooks, which `PruningProcessor` overrides, and what all of them read.
FRONT_END: tuple[Row, ...] = (
    (PROCESSING, f"{PROCESSOR}.apply", ("inputs", "timing_ctx")),
    (PROCESSING, f"{PROCESSOR}.get_dummy_inputs", ()),
    (PROCESSING, f"{PROCESSOR}._get_mm_hashes", ("inputs",)),
    (PROCESSING, f"{PROCESSOR}._get_cache_missing_processor_kwargs", ("inputs", "mm_is_cached")),
    (PROCESSING, f"{PROCESSOR}._apply_hf_processor_main", ("mm_items", "hf_kwargs")),
    (PROCESSING, f"{PROCESSOR}._get_mm_fields_config", ("hf_inputs", "hf_processor_mm_kwargs")),
    (PROCESSING, f"{PROCESSOR}._get_prompt_updates", ("mm_items", "hf_processor_mm_kwargs", "out_mm_kwargs")),
    (PROCESSING, "ProcessorInputs", ("prompt", "mm_data_items", "hf_processor_mm_kwargs")),
    ("vllm.multimodal.parse", "EmbeddingItems", ()),
    ("vllm.multimodal.parse", "DictEmbeddingItems", ()),
    ("vllm.multimodal.inputs", "MultiModalFieldConfig.batched", ("modality", "keep_on_cpu")),
    ("vllm.multimodal.inputs", "MultiModalFeatureSpec", ("data", "modality", "mm_position")),
    ("vllm.multimodal.inputs", "PlaceholderRange", ("offset", "length")),
    ("vllm.multimodal.hasher", "MultiModalHasher.hash_kwargs", ("algorithm", "kwargs")),
    ("vllm.config", "ModelConfig", ("hf_text_config", "uses_mrope", "max_model_len")),
    ("vllm.config", "MultiModalConfig", ("mm_hasher_algorithm", "video_pruning_rate")),
    ("vllm.config", "ParallelConfig", ("pipeline_parallel_size", "prefill_context_parallel_size")),
    ("vllm.config", "ParallelConfig", ("use_ubatching",)),
    ("vllm.config", "SpeculativeConfig", ("method",)),
    ("vllm.config", "LoRAConfig", ("enable_tower_connector_lora",)),
    ("vllm.config", "SchedulerConfig", ("max_num_encoder_input_tokens", "max_num_batched_tokens")),
    ("vllm.config", "CompilationConfig", ("max_cudagraph_capture_size",)),
)
EMBED = ("input_ids", "multimodal_embeddings", "is_multimodal")
FORWARD = ("input_ids", "positions", "intermediate_tensors", "inputs_embeds")
# Of modules that load models, and CUDA with them: looked for where a model is.
MODEL: tuple[Row, ...] = (
    (f"{MODELS}.llava", "_build_llava_or_pixtral_hf_info", ("ctx",)),
    (f"{MODELS}.llava", "LlavaForConditionalGeneration.embed_input_ids", EMBED),
    (f"{MODELS}.llava", "LlavaForConditionalGeneration.forward", FORWARD),
    (f"{MODELS}.qwen2_vl", "Qwen2VLProcessingInfo._get_vision_info", ("image_processor", "mm_kwargs")),
    (f"{MODELS}.qwen2_vl", "Qwen2VLForConditionalGeneration.embed_input_ids", EMBED),
    (f"{MODELS}.qwen2_vl", "Qwen2VLForConditionalGeneration.forward", FORWARD),
    (
        f"{MODELS}.qwen2_vl",
        "Qwen2VLForConditionalGeneration.get_mrope_input_positions",
        ("input_tokens", "mm_features"),
    ),
    (f"{MODELS}.qwen3_vl", "Qwen3VLForConditionalGeneration.get_encoder_cudagraph_config", ()),
    ("vllm.distributed", "get_tp_group", ()),
)


def fault(rows: Iterable[Row]) -> str | None:
    """What the installed vLLM lacks of ``rows``, as a sentence that names it; None if it has all."""
    for module, path, needed in rows:
        try:
            thing = attrgetter(path)(import_module(module))
        except (ImportError, AttributeError):
            return _sentence(f"{module}.{path}")
        for name in needed:
            if name not in _has(thing):
                return _sentence(f"{name!r} of {module}.{path}")
    return None


def _has(thing: Any) -> set[str]:
    """Parameters of a function; attributes of anything else, and fields of a dataclass."""
    if inspect.isroutine(thing):
        return set(inspect.signature(thing).parameters)
    return {*dir(thing), *getattr(thing, "__dataclass_fields__", ())}


def _sentence(what: str) -> str:
    import vllm

    return f"foveate does not know vLLM {vllm.__version__}, which has no {what}: docs/vllm.md says which it knows"
