"""What is refused: at start with the reason, per request with an error, and nothing else with it."""

import copy
from types import SimpleNamespace

import pytest
import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.models.config import MODELS_CONFIG_MAP

import foveate
from checkpoints import IMAGE
from conftest import ENGINE, QUESTIONS, opened, picture
from foveate.errors import InvalidOption
from foveate.families.layout import Layout
from foveate.methods import UniformGrid
from foveate.tokens import VisualTokens
from foveate.vllm.models.pruning import _order
from foveate.vllm.registration import Refused, Served
from foveate.vllm.unpruned import unpruned

SPARE = {"method": "spare", "keep": 8}
READ = ("model_config", "speculative_config", "lora_config")


def configured(folders, name, options, **engine):
    folder, _, _ = folders(name)
    return EngineArgs(
        str(folder), **{**ENGINE, "hf_overrides": {"foveate": options}, **engine}
    ).create_engine_config()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "nosuch"}, "allowed are spare"),
        ({"method": "spare:beta=-1"}, "beta=-1"),
        ({"method": "fastv"}, "inside the language model"),
        ({"method": "visionzip"}, "makes new tokens"),
        ({"method": "downsample"}, "makes new tokens"),
        ({"method": "fastervlm"}, "attention"),
        ({"method": "vispruner"}, "needs"),
        ({"method": "spare:relevance=clip"}, "clip_relevance"),
        ({"method": "cdpruner:faithful=true"}, "faithful"),
        ({"method": "spare", "keep": 0}, "keep=0"),
        ({"method": "spare", "keep": 1.5}, "keep=1.5"),
        ({"method": "spare", "keep": True}, "keep=True"),
        ({"method": "spare", "keep": "64"}, "keep='64'"),
        ({"keep_total": 64}, "keep_total"),
        ({"method": 3}, "method=3"),
        ({"query": 3}, "query=3"),
        ({"query": "\ud800"}, "lone surrogates"),
        ({"query": "a" * 8193}, "query of 8193 characters: allowed are 8192"),
        ("spare", "allowed is an object"),
    ],
)
def test_bad_defaults_at_start(folders, options, says):
    with pytest.raises(Exception, match=says):
        configured(folders, "llava", options)


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        ({"pipeline_parallel_size": 2, "distributed_executor_backend": "mp"}, "pipeline"),
        ({"video_pruning_rate": 0.5}, "video-pruning-rate"),
        ({"enable_lora": True, "enable_tower_connector_lora": True}, "tower-connector-lora"),
    ],
)
def test_what_pruning_cannot_go_with(folders, engine, says):
    configured(folders, "qwen2_5_vl", SPARE)
    with pytest.raises(Exception, match=says):
        configured(folders, "qwen2_5_vl", SPARE, **engine)


@pytest.mark.parametrize(
    ("attribute", "value", "says"),
    [
        ("enable_dbo", True, "enable-dbo"),
        ("prefill_context_parallel_size", 2, "prefill-context-parallel-size"),
    ],
)
def test_what_splits_positions(folders, attribute, value, says):
    """Put into a config that is made: without a GPU, vLLM itself refuses it sooner."""
    config = configured(folders, "llava", SPARE)
    parallel = copy.copy(config.parallel_config)
    read = {name: getattr(config, name) for name in READ}
    Served().verify_and_update_config(SimpleNamespace(**read, parallel_config=parallel))
    object.__setattr__(parallel, attribute, value)
    with pytest.raises(ValueError, match=says):
        Served().verify_and_update_config(SimpleNamespace(**read, parallel_config=parallel))


def described(**config):
    return SimpleNamespace(
        hf_config=SimpleNamespace(**config), architecture="Some", multimodal_config=None, uses_mrope=False
    )


@pytest.mark.parametrize(
    "architecture",
    [
        "Gemma3ForConditionalGeneration",
        "Gemma4ForConditionalGeneration",  # has hooks of vLLM's own
        "TransformersMultiModalForCausalLM",
        "TransformersMultiModalMoEForCausalLM",
        "InternVLForConditionalGeneration",
        "Qwen3_5ForConditionalGeneration",
        "LlamaForCausalLM",
    ],
)
def test_other_architectures(architecture):
    hook = MODELS_CONFIG_MAP[architecture]
    with pytest.raises(ValueError, match="allowed are LlavaForConditionalGeneration"):
        hook.verify_and_update_model_config(described(foveate={"keep": 4}))


@pytest.mark.parametrize("hooks", [Refused, Served])
def test_hooks_of_vllm_are_called(hooks):
    called = []
    stock = SimpleNamespace(
        verify_and_update_model_config=lambda config: called.append(config),
        verify_and_update_config=lambda config: called.append(config),
    )
    config = SimpleNamespace(**vars(described()), model_config=described())
    hooks(stock).verify_and_update_model_config(config)
    hooks(stock).verify_and_update_config(config)
    assert called == [config, config]
    assert MODELS_CONFIG_MAP["Gemma4ForConditionalGeneration"].stock.__name__ == "Gemma4Config"


def test_the_backend_of_transformers(folders):
    with pytest.raises(Exception, match="cannot prune TransformersMultiModalForCausalLM"):
        configured(folders, "qwen2_5_vl", SPARE, model_impl="transformers")


@pytest.mark.parametrize("options", [{}, {"hf_overrides": {"foveate": SPARE}}])
def test_a_default_among_the_options_of_the_stock_processor(folders, options):
    folder, _, _ = folders("llava")
    with pytest.raises(Exception, match="hf-overrides"):
        EngineArgs(
            str(folder), **{**ENGINE, **options}, mm_processor_kwargs={"foveate": SPARE}
        ).create_engine_config()


def test_towers_and_configs_that_are_not_known():
    pixtral = SimpleNamespace(model_type="pixtral")
    with pytest.raises(ValueError, match="tower 'pixtral'"):
        Served().verify_and_update_model_config(described(foveate={}, model_type="llava", vision_config=pixtral))
    with pytest.raises(ValueError, match="model_type='bespoke'"):
        Served().verify_and_update_model_config(described(foveate={}, model_type="bespoke"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "norm", "keep": 61}, "keeps 61 token(s) of each image, by norm"),
        ({"method": "norm", "keep": 0.61}, "keeps 0.61 of each image's tokens, by norm"),
        ({"method": "norm"}, "prunes on request alone (the default has no keep), by norm"),
    ],
)
def test_what_will_be_kept_is_said_at_start(folders, logged, options, says):
    configured(folders, "llava", options)
    assert says in logged.text


def test_an_image_of_which_nothing_is_known():
    lost = SimpleNamespace(data=None, modality="image", mm_position=SimpleNamespace(offset=1, length=2))
    with pytest.raises(ValueError, match="size is not known"):
        unpruned([1, IMAGE, IMAGE, 2], [lost], lambda fields: 9)


def test_rotary_embeddings_that_change_with_their_length(folders):
    def rope(kind, **more):
        text = {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, **more}}
        return {"hf_overrides": {"foveate": SPARE, "text_config": text}}

    configured(folders, "llava", SPARE, **rope("linear"))
    with pytest.raises(Exception, match="rope_type='dynamic'"):
        configured(folders, "llava", SPARE, **rope("dynamic"))


def test_speculators_with_a_model_of_their_own(folders):
    folder, _, _ = folders("llava")
    configured(folders, "llava", SPARE, speculative_config={"method": "ngram", "num_speculative_tokens": 2})
    draft = {"method": "draft_model", "model": str(folder), "num_speculative_tokens": 2}
    with pytest.raises(Exception, match="speculator"):
        configured(folders, "llava", SPARE, speculative_config=draft)


BAD = [
    ({"method": "nosuch", "keep": 4}, "allowed are spare"),
    ({"keep": 0}, "keep=0"),
    ({"keep": -3}, "keep=-3"),
    ({"keep": "many"}, "keep='many'"),
    ({"keep": None, "method": "spare"}, "keep=null"),
    ({"keep": 4, "colour": "red"}, "'colour' is unknown"),
    ({"keep": 4, "query": ["a"]}, "query="),
    ({"keep": 4, "method": "pyramiddrop"}, "inside the language model"),
    ([4], "allowed is an object"),
    ("spare", "allowed is an object"),
]


def test_bad_requests_and_the_engine_lives_on(folders):
    with opened(folders, "llava", {}, enable_mm_embeds=True) as bench:
        good = bench.request([picture(0)], QUESTIONS[0], foveate={"method": "rrqr", "keep": 5})
        wanted = [bench.expected([picture(0)], QUESTIONS[0], foveate.RRQR(), 5)]
        for bad, says in BAD:
            with pytest.raises(ValueError, match=says):
                bench.answers([bench.request([picture(0)], QUESTIONS[0], foveate=bad)])
            assert bench.answers([good]) == wanted
        embedded = {**good, "multi_modal_data": {"image": torch.randn(1, 36, 128)}}
        with pytest.raises(ValueError, match="image embeddings"):
            bench.answers([embedded])
        assert bench.answers([good]) == wanted


def test_features_that_a_method_refuses_do_not_end_the_engine(folders, logged):
    """By then the request runs: an even grid is kept, and said in the log."""
    with opened(folders, "llava", SPARE) as bench:
        good = bench.request([picture(0)], QUESTIONS[0])
        wanted = bench.expected([picture(0)], QUESTIONS[0], foveate.SPARE(relevance="llm"), 8)
        seen = []
        bench.engine.apply_model(_spoil)
        bench.engine.apply_model(lambda model: seen.append(_watch(model)))
        bench.answers([bench.request([picture(1)], QUESTIONS[0])])
        bench.engine.apply_model(_mend)
        bench.engine.apply_model(_unwatch)
        assert "keeps an even grid of an image, in the place of SPARE" in logged.text
        rows = torch.randn(36, 128)
        even = UniformGrid().rank(VisualTokens(rows, ((6, 6),), torch.zeros(36, dtype=torch.bool), "llava"), 8)
        (offsets,) = seen[0]
        assert offsets == even.sort().values.tolist()
        assert bench.answers([good]) == [wanted]


def test_a_mistake_of_a_method_is_no_even_grid():
    """Only features that are refused are the image's fault."""

    class Mistaken(foveate.RRQR):
        def rank(self, tokens, k):
            raise InvalidOption("a mistake")

    layout = Layout.of((6, 6))
    tokens = VisualTokens(torch.randn(36, 8), layout.grids, family="llava")
    with pytest.raises(InvalidOption, match="a mistake"):
        _order(tokens, Mistaken(), 4)


def test_words_are_embedded_without_an_adapter(folders):
    """The layer that vLLM wraps for adapters adds that of whichever request comes first in the step."""
    with opened(folders, "llava", SPARE, enable_lora=True, max_lora_rank=8, max_loras=1) as bench:
        (same,) = bench.engine.apply_model(_words_with_a_broken_adapter)
        assert same
        asked = bench.request([picture(0)], QUESTIONS[0])
        assert bench.answers([asked]) == [
            bench.expected([picture(0)], QUESTIONS[0], foveate.SPARE(relevance="llm"), 8)
        ]


def _words_with_a_broken_adapter(model):
    layer = model.get_language_model().model.embed_tokens
    weight = layer.base_layer.weight  # that it is wrapped is what is tested

    def broken(ids):
        raise AssertionError("the adapter was asked")

    layer.forward = broken
    found = model.words(torch.tensor([5, 7]))
    del layer.forward
    return bool((found == weight[[5, 7]]).all())


def _watch(model):
    """Where the kept tokens of each image stood, in a list that fills."""
    found, stock = [], type(model).pruned

    def pruned(rows, choice, layout):
        kept = stock(model, rows, choice, layout)
        found.append((kept[:, -6 + 2].long() * 256 + kept[:, -1].long()).tolist())
        return kept

    model.pruned = pruned
    return found


def _unwatch(model):
    del model.pruned


def _spoil(model):
    model.multi_modal_projector.linear_2.bias.data[0] = float("nan")


def _mend(model):
    model.multi_modal_projector.linear_2.bias.data[0] = 0.0
