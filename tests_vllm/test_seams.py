"""The names of vLLM that the plugin relies on and that vLLM does not document; which runner is tested."""

import inspect
import os

import pytest
import torch
import vllm
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.models import ModelRegistry, llava, qwen2_5_vl, qwen2_vl
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFeatureSpec
from vllm.multimodal.processing import BaseMultiModalProcessor, ProcessorInputs, TimingContext

from conftest import ENGINE, chat, opened, picture
from foveate.vllm import register
from foveate.vllm.models import PrunedLlava, PrunedQwen25VL
from foveate.vllm.processor import PruningProcessor
from foveate.vllm.registration import PRUNED, VERSION, Refused, Served

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
    assert callable(qwen2_vl.Qwen2VLProcessingInfo._get_vision_info)


def test_registration():
    """Every process calls it, some twice."""
    register()
    register()
    hooks = {name for name in vars(VerifyAndUpdateConfig) if name.startswith("verify")}
    assert ModelRegistry.get_supported_archs() > PRUNED.keys()
    for architecture in ModelRegistry.get_supported_archs():
        hook = MODELS_CONFIG_MAP[architecture]
        assert hook is Served if architecture in PRUNED else not isinstance(hook.stock, Refused)
    for kind in (Served, Refused):
        assert hooks == {name for name in vars(kind) if name.startswith("verify")}


def test_hooks_that_are_replaced():
    """None of vLLM's own: those of the architectures that are refused are kept and called."""
    written = inspect.getsource(vllm.model_executor.models.config)
    assert '"Gemma4ForConditionalGeneration": ' in written
    assert not any(f'"{architecture}": ' in written for architecture in PRUNED)


def test_another_version_is_left_alone(monkeypatch, logged):
    monkeypatch.setattr(vllm, "__version__", "0.31.2")
    monkeypatch.setattr(ModelRegistry, "register_model", None)
    register()
    assert [(record.levelname, "0.31.2" in record.getMessage()) for record in logged.records] == [("INFO", True)]


@pytest.mark.parametrize(
    ("name", "ours", "stock"),
    [
        ("llava", PrunedLlava, llava.LlavaForConditionalGeneration),
        ("qwen2_5_vl", PrunedQwen25VL, qwen2_5_vl.Qwen2_5_VLForConditionalGeneration),
    ],
)
def test_without_configuration_the_front_end_and_positions_are_stock(folders, name, ours, stock):
    folder, _, processor = folders(name)
    config = EngineArgs(str(folder), **ENGINE).create_engine_config().model_config
    prompt = processor.apply_chat_template(chat([0, 1], "Is it red?"), add_generation_prompt=True)
    found = []
    for kind in (ours, stock):
        context = MULTIMODAL_REGISTRY._create_processing_ctx(config)
        built = kind._processor_factory.build_processor(context)
        items = built.info.parse_mm_data({"image": [picture(0), picture(1)]})
        ids = processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        given = ProcessorInputs(ids, items, hf_processor_mm_kwargs={"do_rescale": True})
        found.append(built.apply(given, TimingContext(enabled=False)))
    mine, theirs = found
    assert mine["prompt_token_ids"] == theirs["prompt_token_ids"]
    assert mine["mm_hashes"] == theirs["mm_hashes"]
    assert mine["mm_placeholders"] == theirs["mm_placeholders"]
    assert fields(mine) == fields(theirs)
    if name == "qwen2_5_vl":
        parts = (mine[part]["image"] for part in ("mm_kwargs", "mm_hashes", "mm_placeholders"))
        features = [
            MultiModalFeatureSpec(data, "image", digest, place) for data, digest, place in zip(*parts, strict=True)
        ]
        numbered = []
        for kind in (ours, stock):
            model = object.__new__(kind)
            torch.nn.Module.__init__(model)
            model.config, model.offsets = config.hf_config, None
            numbered.append(model.get_mrope_input_positions(mine["prompt_token_ids"], features))
        assert numbered[0][0].tolist() == numbered[1][0].tolist()
        assert numbered[0][1] == numbered[1][1]


def fields(processed):
    return [
        {name: element.data.tolist() for name, element in item.items()} for item in processed["mm_kwargs"]["image"]
    ]


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
