"""What vLLM is told at the start of each of its processes, and what is refused before a model is loaded."""

from dataclasses import dataclass
from typing import Any

from foveate.families import FAMILIES
from foveate.vllm.choice import KEY, Request
from foveate.vllm.names import FRONT_END, TABLES, fault

# The class that takes the place of vLLM's own, for each architecture it is registered under.
PRUNED = {
    "LlavaForConditionalGeneration": "PrunedLlava",
    "LlavaNextForConditionalGeneration": "PrunedLlavaNext",
    "LlavaOnevisionForConditionalGeneration": "PrunedLlavaOnevision",
    "Qwen2VLForConditionalGeneration": "PrunedQwen2VL",
    "Qwen2_5_VLForConditionalGeneration": "PrunedQwen25VL",
    "Qwen3VLForConditionalGeneration": "PrunedQwen3VL",
}
# Those whose positions count tokens; the others' have three axes.
ONE_AXIS = frozenset(name for name in PRUNED if name.startswith("Llava"))
# Has three axes, and a rotary table of max_position_embeddings rows; that of the others has four times as many.
SHORT = "qwen3_vl"
# Rotary embeddings whose rows do not depend on how many there are: the table may be made longer.
LENGTHENED = ("default", "linear", "llama3")
# How LLaVA-OneVision shrinks large images; vLLM does it so whatever the config says.
ASPECT = "anyres_max_9"
# Speculators without a model of their own; others are handed encoder rows by vLLM, which hold more than features.
SPECULATORS = ("ngram", "ngram_gpu", "suffix")


def register() -> None:
    """Put our classes in vLLM's tables; without ``foveate`` in a model's config they do what stock ones do.

    May be called again. A vLLM that lacks a name which the plugin relies on refuses ``foveate`` alone.
    """
    from vllm.logger import init_logger

    if lacking := fault(TABLES):
        # Nothing can be refused without these tables: an option of foveate would be ignored.
        init_logger("vllm.foveate").warning("%s; nothing is pruned", lacking)
        return
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    lacking = fault(FRONT_END)
    pruned = {} if lacking else PRUNED
    for architecture, name in pruned.items():
        # By name: the class itself would load models, and CUDA with them, in processes that need neither.
        ModelRegistry.register_model(architecture, f"foveate.vllm.models:{name}")
    for architecture in ModelRegistry.get_supported_archs():
        hooks = MODELS_CONFIG_MAP.get(architecture)
        stock = hooks.stock if isinstance(hooks, (Served, Refused)) else hooks
        MODELS_CONFIG_MAP[architecture] = Served(stock) if architecture in pruned else Refused(stock, lacking)


@dataclass(frozen=True)
class Served:
    """vLLM's hooks for an architecture that can be pruned (`VerifyAndUpdateConfig`).

    Attributes:
        stock: the hooks that were there, or None; they are called first.
    """

    stock: Any = None

    def verify_and_update_model_config(self, model_config: Any) -> None:
        """Check the server's default, and have original positions kept where positions have one axis.

        Raises:
            ValueError: a bad default, or a model that cannot be pruned.
        """
        from vllm.logger import init_logger

        if self.stock is not None:
            self.stock.verify_and_update_model_config(model_config)
        _refuse_options_of_the_engine(model_config)
        config = model_config.hf_config
        if getattr(config, KEY, None) is None:
            return
        default = Request.read(getattr(config, KEY))
        init_logger("vllm.foveate").info_once("foveate %s", default.told())
        family = FAMILIES.get(config.model_type)
        if family is None:
            raise ValueError(f"model_type={config.model_type!r}: allowed are {', '.join(FAMILIES)}")
        tower = config.vision_config.model_type
        towers = [name for name in family.towers if name != "pixtral"]  # its rows of patches end in text
        if towers and tower not in towers:
            raise ValueError(f"{family.name} with vision tower {tower!r}: allowed is {' or '.join(towers)}")
        aspect = getattr(config, "vision_aspect_ratio", ASPECT)
        if aspect != ASPECT:
            raise ValueError(f"vision_aspect_ratio={aspect!r}: allowed is {ASPECT!r}, the one vLLM knows")
        if model_config.uses_mrope:
            if config.model_type == SHORT and _rope_type(model_config) in LENGTHENED:
                _lengthen(model_config)
            return
        if model_config.architecture not in ONE_AXIS:
            raise ValueError("rope_parameters without mrope_section: allowed are positions of three axes")
        kind = _rope_type(model_config)
        if kind not in LENGTHENED:
            raise ValueError(f"rope_type={kind!r} of the language model: allowed are {', '.join(LENGTHENED)}")
        _lengthen(model_config)
        # vLLM lets a model number its prompt only where it finds several axes here. The language model's own
        # rotary embedding is built from text_config, and stays as it is.
        config.rope_parameters = {"mrope_section": [1, 1, 1]}

    def verify_and_update_config(self, vllm_config: Any) -> None:
        """Refuse what pruning cannot go with.

        Raises:
            ValueError: what, and what is allowed.
        """
        if self.stock is not None:
            self.stock.verify_and_update_config(vllm_config)
        if getattr(vllm_config.model_config.hf_config, KEY, None) is None:
            return
        parallel, multimodal = vllm_config.parallel_config, vllm_config.model_config.multimodal_config
        speculative, lora = vllm_config.speculative_config, vllm_config.lora_config
        refused = {
            "--pipeline-parallel-size > 1 (later stages never see which tokens were kept)": (
                parallel.pipeline_parallel_size > 1
            ),
            "--enable-dbo (it splits positions where offsets are not split)": parallel.use_ubatching,
            "--prefill-context-parallel-size > 1 (it splits positions where offsets are not split)": (
                parallel.prefill_context_parallel_size > 1
            ),
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


@dataclass(frozen=True)
class Refused:
    """The hooks for an architecture that vLLM serves and this plugin does not.

    Attributes:
        stock: the hooks that were there, or None; they are called as ever.
        lacking: what this vLLM lacks for any architecture; None if nothing.
    """

    stock: Any
    lacking: str | None = None

    def verify_and_update_model_config(self, model_config: Any) -> None:
        """Refuse to serve unpruned what was asked to be pruned.

        Raises:
            ValueError: the model's config has ``foveate``.
        """
        _refuse_options_of_the_engine(model_config)
        if getattr(model_config.hf_config, KEY, None) is not None:
            raise ValueError(
                self.lacking
                or f"foveate cannot prune {model_config.architecture} here: allowed are {', '.join(PRUNED)}"
            )
        if self.stock is not None:
            self.stock.verify_and_update_model_config(model_config)

    def verify_and_update_config(self, vllm_config: Any) -> None:
        """The stock hook's."""
        if self.stock is not None:
            self.stock.verify_and_update_config(vllm_config)


def _refuse_options_of_the_engine(model_config: Any) -> None:
    """Refuse ``foveate`` where vLLM would hand it to the stock processor, which ignores it."""
    multimodal = model_config.multimodal_config
    if multimodal is not None and KEY in (multimodal.mm_processor_kwargs or {}):
        raise ValueError(
            f"{KEY} in --mm-processor-kwargs prunes nothing: allowed are --hf-overrides "
            f"'{{\"{KEY}\": ...}}' for a default, and mm_processor_kwargs of a request"
        )


def _rope_type(model_config: Any) -> str:
    rope = getattr(model_config.hf_text_config, "rope_parameters", None) or {}
    return str(rope.get("rope_type", "default"))


def _lengthen(model_config: Any) -> None:
    """Make the rotary table long enough for the positions of tokens that are dropped.

    vLLM checks that the tokens that are left, answer included, are at most ``max_model_len``. Those positions are
    past it by as many as were dropped, and what reads the table does not check. The front end lets no request drop
    more than the rows added here.
    """
    model_config.hf_text_config.max_position_embeddings += model_config.max_model_len
