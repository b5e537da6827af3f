"""What is refused: at start with the reason, per request with an error, and nothing else with it."""

import pytest
from vllm.engine.arg_utils import EngineArgs

import foveate
from conftest import ENGINE, QUESTIONS, opened, picture

SPARE = {"method": "spare", "keep": 8}


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


def test_speculators_with_a_model_of_their_own(folders):
    folder, _, _ = folders("llava")
    configured(folders, "llava", SPARE, speculative_config={"method": "ngram", "num_speculative_tokens": 2})
    draft = {"method": "draft_model", "model": str(folder), "num_speculative_tokens": 2}
    with pytest.raises(Exception, match="speculator"):
        configured(folders, "llava", SPARE, speculative_config=draft)


BAD = [
    {"method": "nosuch", "keep": 4},
    {"keep": 0},
    {"keep": -3},
    {"keep": "many"},
    {"keep": None, "method": "spare"},
    {"keep": 4, "colour": "red"},
    {"keep": 4, "query": ["a"]},
    {"keep": 4, "method": "pyramiddrop"},
    [4],
    "spare",
]


def test_bad_requests_and_the_engine_lives_on(folders):
    with opened(folders, "llava", {}) as bench:
        good = bench.request([picture(0)], QUESTIONS[0], foveate={"method": "rrqr", "keep": 5})
        wanted = [bench.expected([picture(0)], QUESTIONS[0], foveate.RRQR(), 5)]
        for bad in BAD:
            with pytest.raises(ValueError, match=r"allowed|keep"):
                bench.answers([bench.request([picture(0)], QUESTIONS[0], foveate=bad)])
            assert bench.answers([good]) == wanted


def test_features_that_a_method_refuses_do_not_end_the_engine(folders, caplog):
    """By then the request runs: an even grid is kept, and said in the log."""
    with opened(folders, "llava", SPARE) as bench:
        good = bench.request([picture(0)], QUESTIONS[0])
        wanted = bench.expected([picture(0)], QUESTIONS[0], foveate.SPARE(relevance="llm"), 8)
        bench.engine.apply_model(_spoil)
        bench.answers([bench.request([picture(1)], QUESTIONS[0])])
        bench.engine.apply_model(_mend)
        assert bench.answers([good]) == [wanted]


def _spoil(model):
    model.multi_modal_projector.linear_2.bias.data[0] = float("nan")


def _mend(model):
    model.multi_modal_projector.linear_2.bias.data[0] = 0.0
