"""The names of vLLM that the plugin relies on and that vLLM does not document; which runner is tested."""

import os

import vllm
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.models import ModelRegistry, llava
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
from vllm.multimodal.processing import BaseMultiModalProcessor

from conftest import ENGINE, opened
from foveate.vllm import register
from foveate.vllm.processor import PruningProcessor
from foveate.vllm.registration import PRUNED, UNSUPPORTED, VERSION, Refused, Served

HOOKS = (
    "_apply_hf_processor_main",
    "_get_cache_missing_processor_kwargs",
    "_get_mm_fields_config",
    "_get_mm_hashes",
    "_get_prompt_updates",
)


def test_the_version():
    assert vllm.__version__.startswith(VERSION)


def test_hooks_of_the_processor():
    ours = {name for name in vars(PruningProcessor) if name.startswith("_get") or name.startswith("_apply")}
    assert ours == set(HOOKS)
    assert all(callable(getattr(BaseMultiModalProcessor, name)) for name in HOOKS)
    assert callable(llava._build_llava_or_pixtral_hf_info)


def test_registration():
    """Every process calls it, some twice."""
    register()
    register()
    hooks = {name for name in vars(VerifyAndUpdateConfig) if name.startswith("verify")}
    for architecture in (*PRUNED, *UNSUPPORTED):
        assert architecture in ModelRegistry.get_supported_archs()
        kind = MODELS_CONFIG_MAP[architecture]
        assert kind is (Served if architecture in PRUNED else Refused)
        assert hooks == {name for name in vars(kind) if name.startswith("verify")}


def test_positions_of_one_axis_are_numbered_by_the_model_only_where_configured(folders):
    folder, _, _ = folders("llava")
    for overrides, asked in ((None, False), ({"foveate": {}}, True)):
        config = EngineArgs(str(folder), **{**ENGINE, "hf_overrides": overrides or {}}).create_engine_config()
        assert config.model_config.uses_mrope is asked


def test_the_runner_that_is_asked_for(folders):
    """Or the second half of `make test-vllm` would test the first runner again."""
    with opened(folders, "llava", {}) as bench:
        executor = bench.engine.llm_engine.model_executor
        module = type(executor.driver_worker.worker.model_runner).__mro__[1].__module__
        second = os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1"
        assert module == ("vllm.v1.worker.gpu.model_runner" if second else "vllm.v1.worker.gpu_model_runner")
