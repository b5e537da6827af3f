"""What vLLM is told at the start of each of its processes, and what is refused before a model is loaded.

Names that vLLM 0.32 does not document, all guarded by tests_vllm/test_seams.py: `MODELS_CONFIG_MAP` (a table of
hooks per architecture) and the attributes of its configs that the hook reads.
"""

from typing import Any

from foveate.families import FAMILIES
from foveate.vllm.choice import KEY, Request

VERSION = "0.32."
# The class that takes the place of vLLM's own, for each architecture it is registered under.
PRUNED = {
    "LlavaForConditionalGeneration": "PrunedLlava",
    "LlavaNextForConditionalGeneration": "PrunedLlavaNext",
    "LlavaOnevisionForConditionalGeneration": "PrunedLlavaOnevision",
    "Qwen2VLForConditionalGeneration": "PrunedQwen2VL",
    "Qwen2_5_VLForConditionalGeneration": "PrunedQwen25VL",
    "Qwen3VLForConditionalGeneration": "PrunedQwen3VL",
}
# Others that foveate prunes beside transformers; asked for here, they are refused instead of served whole.
UNSUPPORTED = (
    "Gemma3ForConditionalGeneration",
    "Glm4vForConditionalGeneration",
    "Idefics3ForConditionalGeneration",
    "InternVLForConditionalGeneration",
    "LlavaNextVideoForConditionalGeneration",
    "Mistral3ForConditionalGeneration",
    "PaliGemmaForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
    "SmolVLMForConditionalGeneration",
)
# How LLaVA-OneVision shrinks large images; vLLM 0.32 does it so whatever the config says.
ASPECT = "anyres_max_9"
# Speculators without a model of their own; others are handed encoder rows by vLLM, which hold more than features.
SPECULATORS = ("ngram", "ngram_gpu", "suffix")


def register() -> None:
    """Put our classes in vLLM's tables; without ``foveate`` in a model's config they do what stock ones do.

    May be called again. Another version of vLLM is left alone, with a warning.
    """
    import vllm
    from vllm.logger import init_logger
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    if not vllm.__version__.startswith(VERSION):
        init_logger("vllm.foveate").warning(
            "foveate prunes with vLLM %sx alone, this is %s: nothing is registered", VERSION, vllm.__version__
        )
        return
    for architecture, name in PRUNED.items():
        # By name: the class itself would load models, and CUDA with them, in processes that need neither.
        ModelRegistry.register_model(architecture, f"foveate.vllm.models:{name}")
        MODELS_CONFIG_MAP[architecture] = Served
    for architecture in UNSUPPORTED:
        MODELS_CONFIG_MAP.setdefault(architecture, Refused)


class Served:
    """vLLM's hooks for an architecture that can be pruned (`VerifyAndUpdateConfig`)."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Check the server's default, and have original positions kept where positions have one axis.

        Raises:
            ValueError: a bad default, or a model that cannot be pruned.
        """
        config = model_config.hf_config
        if getattr(config, KEY, None) is None:
            return
        Request.read(getattr(config, KEY))
        family = FAMILIES[config.model_type]
        tower = config.vision_config.model_type
        towers = [name for name in family.towers if name != "pixtral"]  # its rows of patches end in text
        if towers and tower not in towers:
            raise ValueError(f"{family.name} with vision tower {tower!r}: allowed is {' or '.join(towers)}")
        aspect = getattr(config, "vision_aspect_ratio", ASPECT)
        if aspect != ASPECT:
            raise ValueError(f"vision_aspect_ratio={aspect!r}: allowed is {ASPECT!r}, the one vLLM knows")
        if not model_config.uses_mrope:
            # vLLM lets a model number its prompt only where it finds several axes here. The language model's own
            # rotary embedding is built from text_config, and stays as it is.
            config.rope_parameters = {"mrope_section": [1, 1, 1]}

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Refuse what pruning cannot go with.

        Raises:
            ValueError: what, and what is allowed.
        """
        if getattr(vllm_config.model_config.hf_config, KEY, None) is None:
            return
        parallel, multimodal = vllm_config.parallel_config, vllm_config.model_config.multimodal_config
        speculative, lora = vllm_config.speculative_config, vllm_config.lora_config
        refused = {
            "--pipeline-parallel-size > 1 (later stages never see which tokens were kept)": (
                parallel.pipeline_parallel_size > 1
            ),
            "--enable-dbo (it splits positions where offsets are not split)": parallel.use_ubatching,
            "--video-pruning-rate (it reads the same rows as its own)": (
                multimodal is not None and bool(multimodal.video_pruning_rate)
            ),
            f"a speculator with a model of its own (allowed are {', '.join(SPECULATORS)})": (
                speculative is not None and speculative.method not in SPECULATORS
            ),
            "--enable-tower-connector-lora (it counts kept tokens where the tower has all)": (
                lora is not None and lora.enable_tower_connector_lora
            ),
        }
        for what, given in refused.items():
            if given:
                raise ValueError(f"foveate cannot prune with {what}: leave it out, or leave foveate out")


class Refused:
    """The hooks for an architecture that vLLM serves and this plugin does not."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Refuse to serve unpruned what was asked to be pruned.

        Raises:
            ValueError: the model's config has ``foveate``.
        """
        if getattr(model_config.hf_config, KEY, None) is not None:
            raise ValueError(
                f"foveate cannot prune {model_config.architecture} here: allowed are {', '.join(PRUNED)}"
            )

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Nothing more."""
