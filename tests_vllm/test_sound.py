"""What vLLM does to requests besides answering them: it mixes, cuts, caches, preempts and repeats them."""

import pytest
import torch

import foveate
from checkpoints import IMAGE
from conftest import QUESTIONS, opened, picture

RRQR, SPARE = foveate.RRQR(), foveate.SPARE(relevance="llm")
LAYOUTS = ("llava", "qwen3_vl")  # one axis of positions; three, and deepstack


def ask(bench, index, question, **options):
    return bench.request([picture(index)], QUESTIONS[question], **options)


def kinds(bench):
    """Requests of every kind, each with what stock transformers answers."""
    spare = {"method": "spare", "keep": 8}
    query = {**spare, "query": "a red ball"}
    asked = [
        (ask(bench, 0, 0), {"method": RRQR, "keep": 14}),
        (ask(bench, 0, 0, foveate=None), {}),
        (ask(bench, 0, 0, foveate={"keep": 4}), {"method": RRQR, "keep": 4}),
        (ask(bench, 0, 0, foveate=spare), {"method": SPARE, "keep": 8}),
        (ask(bench, 0, 0, foveate=query), {"method": SPARE, "keep": 8, "question": "a red ball"}),
        (bench.request([], QUESTIONS[0]), None),
        (ask(bench, 1, 0), {"method": RRQR, "keep": 14}),
        (ask(bench, 0, 0), {"method": RRQR, "keep": 14}),
    ]
    pictures = [[picture(0)]] * 5 + [[], [picture(1)], [picture(0)]]
    wanted = [
        bench.expected(shown, QUESTIONS[0], **(options or {}))
        for shown, (_, options) in zip(pictures, asked, strict=True)
    ]
    return [request for request, _ in asked], wanted


@pytest.fixture(scope="module", params=LAYOUTS)
def bench(request, folders):
    with opened(folders, request.param, {"method": "rrqr", "keep": 14}) as bench:
        yield bench


def test_mixed_batches(bench):
    requests, wanted = kinds(bench)
    assert len(set(map(tuple, wanted))) >= 5  # or mixing them up would not show
    for _ in range(3):
        assert bench.answers(requests) == wanted
    assert bench.answers(requests[::-1]) == wanted[::-1]


def test_a_prefix_hit_that_ends_within_an_image(bench):
    """Half of its tokens are found, half are computed, beside the other question."""
    rrqr = {"method": "rrqr", "keep": 20}
    pictures = [picture(0), picture(1)]
    for question in QUESTIONS[:2]:
        wanted = bench.expected(pictures, question, RRQR, 20)
        assert bench.answers([bench.request(pictures, question, foveate=rrqr)]) == [wanted]
    cached, ids = bench.outputs[0].num_cached_tokens, bench.outputs[0].prompt_token_ids
    assert cached == 32  # one block
    assert ids[cached - 1] == ids[cached] == IMAGE


def test_prefix_cache_hits_behind_an_image(bench):
    question = QUESTIONS[0] + " Tell me about each of them, one by one, and be careful with the small ones."
    wanted = [bench.expected([picture(2)], text, RRQR, 20) for text in (question, question + " Now!")]
    rrqr = {"method": "rrqr", "keep": 20}
    first, again, longer = (
        bench.answers([bench.request([picture(2)], text, foveate=rrqr)])[0]
        for text in (question, question, question + " Now!")
    )
    assert [first, longer] == wanted
    assert again == wanted[0]
    assert bench.outputs[0].num_cached_tokens >= 64  # the image lies within: blocks are 32 tokens


@pytest.mark.parametrize(
    "other", [{"query": "a cat"}, {"method": "cdpruner"}, {"keep": 19}, {"method": "spare:beta=3"}]
)
def test_another_choice_shares_nothing_behind_the_image(bench, other):
    base = {"method": "spare", "keep": 20, "query": "a red ball"}
    for options in (base, base, {**base, **other}):
        bench.answers([ask(bench, 2, 1, foveate=options)])
        cached = bench.outputs[0].num_cached_tokens
        assert cached >= 32 if options is base and cached else cached == 0
    bench.answers([ask(bench, 2, 1, foveate=base)])
    assert bench.outputs[0].num_cached_tokens >= 32


@pytest.mark.parametrize("name", LAYOUTS)
def test_chunked_prefill_cuts_images(folders, name):
    with opened(folders, name, {"method": "rrqr", "keep": 14}, max_num_batched_tokens=16, max_num_seqs=4) as bench:
        requests, wanted = kinds(bench)
        assert bench.answers(requests[:1]) == wanted[:1]
        ids = bench.outputs[0].prompt_token_ids
        assert bench.outputs[0].num_cached_tokens == 0
        assert ids[15] == ids[16] == IMAGE  # where the first chunk ends
        assert bench.answers(requests) == wanted
        assert bench.answers(requests) == wanted


def test_preemption(folders):
    """Eight requests whose answers do not fit into the cache together."""
    options = {"num_gpu_blocks_override": 12, "max_model_len": 256, "disable_log_stats": False}
    with opened(folders, "llava", {"method": "rrqr", "keep": 14}, **options) as bench:
        asked = [ask(bench, index, index % 3, foveate={"keep": 9 + index}) for index in range(8)]
        wanted = [bench.expected([picture(i)], QUESTIONS[i % 3], RRQR, 9 + i, new=48) for i in range(8)]
        assert bench.answers(asked, new=48) == wanted
        counts = {metric.name: getattr(metric, "value", 0) for metric in bench.engine.get_metrics()}
        assert counts["vllm:num_preemptions"] > 0


RAW = {"do_rescale": False, "do_normalize": False}  # vLLM does both within Qwen's tower
TWO = {  # of the tower: a budget for two of three images, and how it is given them
    "llava": ("vision_tower", 80, {}),
    "llava_next": ("vision_tower", 60, {}),
    "qwen2_5_vl": ("visual", 60, RAW),
    "qwen3_vl": ("visual", 60, RAW),
}


@pytest.mark.parametrize("name", TWO)
def test_the_tower_sees_as_many_images_as_the_budget_of_the_encoder_says(folders, name):
    """Few tokens are kept: stock scheduling alone would hand the tower all three at once."""
    tower, budget, form = TWO[name]
    pictures = [picture(index) for index in range(3)]
    with opened(folders, name, {"method": "rrqr", "keep": 4}, max_num_batched_tokens=budget) as bench:
        seen = []
        bench.engine.apply_model(
            lambda model: getattr(model, tower).register_forward_pre_hook(
                lambda _, given: seen.append(given[0].flatten())
            )
        )
        wanted = bench.expected(pictures, QUESTIONS[0], RRQR, 4)
        assert bench.answers([bench.request(pictures, QUESTIONS[0])]) == [wanted]
        prepared = (bench.processor.image_processor(one, return_tensors="pt", **form) for one in pictures)
        pixels = [one["pixel_values"].flatten() for one in prepared]
        for found, images in zip(seen, (pixels[:2], pixels[2:]), strict=True):
            torch.testing.assert_close(found, torch.cat(images), check_dtype=False)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_without_configuration_it_is_stock(folders, name):
    with opened(folders, name, None) as bench:
        assert bench.answers([ask(bench, i, i) for i in range(3)]) == [
            bench.expected([picture(i)], QUESTIONS[i]) for i in range(3)
        ]
        with pytest.raises(ValueError, match="--hf-overrides"):
            bench.answers([ask(bench, 0, 0, foveate={"keep": 4})])


def test_an_empty_configuration_prunes_on_request_alone(folders):
    with opened(folders, "llava", {}) as bench:
        both = [ask(bench, 0, 0), ask(bench, 0, 0, foveate={"method": "rrqr", "keep": 5})]
        assert bench.answers(both) == [
            bench.expected([picture(0)], QUESTIONS[0]),
            bench.expected([picture(0)], QUESTIONS[0], RRQR, 5),
        ]
