"""The names of vLLM that the plugin relies on and that vLLM does not document; which runner is tested."""

import importlib
import os
from types import SimpleNamespace

import pytest
import torch
import vllm
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.models import ModelRegistry, llava, qwen2_5_vl
from vllm.model_executor.models import config as hooks_of_vllm
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFeatureSpec
from vllm.multimodal.processing import BaseMultiModalProcessor, ProcessorInputs, TimingContext

from conftest import ENGINE, chat, opened, picture
from foveate.vllm import register
from foveate.vllm.models import PrunedLlava, PrunedQwen25VL
from foveate.vllm.names import FRONT_END, MODEL, TABLES, fault
from foveate.vllm.processor import PruningProcessor
from foveate.vllm.registration import PRUNED, Refused, Served


@pytest.mark.parametrize("row", [*TABLES, *FRONT_END, *MODEL], ids=lambda row: row[1])
def test_names(row):
    assert fault([row]) is None


def test_names_of_all_hooks_are_looked_for():
    ours = {name for name in vars(PruningProcessor) if name.startswith("_get") or name.startswith("_apply")}
    looked_for = {path.removeprefix("BaseMultiModalProcessor.") for _, path, _ in FRONT_END}
    assert {name for name in looked_for if name.startswith("_")} == ours


def test_registration():
    """Every process calls it, some twice."""
    register()
    register()
    hooks = {name for name in vars(VerifyAndUpdateConfig) if name.startswith("verify")}
    assert ModelRegistry.get_supported_archs() > PRUNED.keys()
    for architecture in ModelRegistry.get_supported_archs():
        hook = MODELS_CONFIG_MAP[architecture]
        assert isinstance(hook, Served if architecture in PRUNED else Refused)
        assert not isinstance(hook.stock, (Served, Refused))
    for kind in (Served, Refused):
        assert hooks == {name for name in vars(kind) if name.startswith("verify")}


def changed(inputs, time):
    """A hook whose parameters have other names."""


@pytest.mark.parametrize(("name", "there"), [("_get_mm_hashes", None), ("apply", changed)])
def test_a_vllm_that_lacks_a_name_refuses_foveate_and_serves_all_else(monkeypatch, name, there):
    monkeypatch.setattr(hooks_of_vllm, "MODELS_CONFIG_MAP", dict(MODELS_CONFIG_MAP))
    monkeypatch.setattr(ModelRegistry, "register_model", lambda model_arch, model_cls: pytest.fail(model_arch))
    monkeypatch.setattr(BaseMultiModalProcessor, name, there)
    if there is None:
        monkeypatch.delattr(BaseMultiModalProcessor, name)
    register()
    hooks = hooks_of_vllm.MODELS_CONFIG_MAP["LlavaForConditionalGeneration"]
    config = SimpleNamespace(hf_config=SimpleNamespace(), architecture="Some", multimodal_config=None)
    hooks.verify_and_update_model_config(config)
    config.hf_config.foveate = {"keep": 4}
    with pytest.raises(
        ValueError, match=rf"vLLM {vllm.__version__}, which has no .*BaseMultiModalProcessor.{name}"
    ):
        hooks.verify_and_update_model_config(config)


def test_a_vllm_that_cannot_refuse_says_that_nothing_is_pruned(monkeypatch, logged):
    monkeypatch.delattr(hooks_of_vllm, "MODELS_CONFIG_MAP")
    register()
    [record] = logged.records
    assert record.levelname == "WARNING"
    assert "config.MODELS_CONFIG_MAP: " in record.getMessage()
    assert "nothing is pruned" in record.getMessage()


def test_a_model_that_lacks_a_name_is_not_loaded(monkeypatch):
    monkeypatch.delattr(llava, "_build_llava_or_pixtral_hf_info")
    with pytest.raises(ImportError, match=r"_build_llava_or_pixtral_hf_info.*VLLM_PLUGINS"):
        importlib.reload(importlib.import_module("foveate.vllm.models"))


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
