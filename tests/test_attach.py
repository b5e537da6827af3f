"""attach(): the same as prune(), wherever images reach the model, and nothing left behind."""

import threading

import pytest
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    pipeline,
)

import foveate
from conftest import CACHE, IMAGE_TOKEN, noise, tiny_prompt

RRQR = foveate.RRQR()


def new_tokens(output, inputs):
    return output[:, inputs["input_ids"].shape[1] :].tolist()


def pruned_tokens(model, inputs, method, keep, **options):
    pruned = foveate.prune(model, inputs, method, keep=keep, use_cache=options.get("use_cache", True))
    return model.generate(**{**pruned, **options})[:, pruned["input_ids"].shape[1] :].tolist()


def untouched(model):
    return "generate" not in model.__dict__ and not model._forward_pre_hooks


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2},
        {"use_cache": False},
        {"cache_implementation": "static"},
    ],
    ids=str,
)
@pytest.mark.parametrize("rows", [(1,), (1, 2), (2, 0, 1)])
def test_generate_gives_the_pruned_tokens_behind_the_full_prompt(tiny, rows, options):
    inputs = tiny_prompt(rows)
    expected = pruned_tokens(tiny, inputs, RRQR, 5, max_new_tokens=9, **options)
    with foveate.attach(tiny, RRQR, keep=5) as attached:
        output = tiny.generate(**inputs, max_new_tokens=9, **options)
    assert new_tokens(output, inputs) == expected
    copies = len(output) // len(rows)
    assert torch.equal(output[::copies, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    assert attached.last.report.tokens_after == [5] * sum(rows)
    assert untouched(tiny)


def test_what_is_passed_to_generate_sees_the_full_prompt(tiny):
    inputs = tiny_prompt((1, 2))
    width, seen = inputs["input_ids"].shape[1], {}

    def note(name, ids):
        seen.setdefault(name, []).append(ids[..., :width].clone())
        return ids.shape[-1] - width

    class Stop(StoppingCriteria):
        def __call__(self, ids, scores, **more):
            return torch.full((len(ids),), note("criteria", ids) >= 3)

    class Processor(LogitsProcessor):
        def __call__(self, ids, scores):
            note("processor", ids)
            return scores

    def allowed(row, ids):
        note(f"prefix {row}", ids)
        return list(range(100))

    class Streamer:
        def put(self, value):
            seen.setdefault("streamer", []).append(value)

        def end(self):
            seen["end"] = True

    options = {
        "stopping_criteria": StoppingCriteriaList([Stop()]),
        "logits_processor": LogitsProcessorList([Processor()]),
        "prefix_allowed_tokens_fn": allowed,
        "streamer": Streamer(),
    }
    with foveate.attach(tiny, RRQR, keep=5):
        output = tiny.generate(**inputs, max_new_tokens=9, **options)
    assert output.shape[1] == width + 3
    for name in ("criteria", "processor"):
        assert all(torch.equal(ids, inputs["input_ids"]) for ids in seen[name])
    for row in range(2):
        assert all(torch.equal(ids, inputs["input_ids"][row]) for ids in seen[f"prefix {row}"])
    assert torch.equal(seen["streamer"][0], inputs["input_ids"])
    assert torch.stack(seen["streamer"][1:], 1).tolist() == output[:, width:].tolist()
    assert seen["end"]


def test_a_length_that_the_prompt_has_already(tiny):
    inputs = tiny_prompt()
    width = inputs["input_ids"].shape[1]
    with (
        foveate.attach(tiny, RRQR, keep=5),
        pytest.raises(foveate.InvalidInputs, match=f"max_length={width}: the prompt"),
    ):
        tiny.generate(**inputs, max_length=width)


@pytest.mark.parametrize("options", [{"prompt_lookup_num_tokens": 3}, {"assistant_model": "itself"}], ids=str)
def test_assisted_decoding_gives_the_greedy_tokens(tiny, options):
    options = {name: tiny if value == "itself" else value for name, value in options.items()}
    inputs = tiny_prompt()
    expected = pruned_tokens(tiny, inputs, RRQR, 5, max_new_tokens=9)
    assert pruned_tokens(tiny, inputs, RRQR, 5, max_new_tokens=9, **options) == expected
    with foveate.attach(tiny, RRQR, keep=5):
        assert new_tokens(tiny.generate(**inputs, max_new_tokens=9, **options), inputs) == expected


def test_generate_returns_dictionaries_and_takes_positional_ids(tiny):
    inputs = tiny_prompt()
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    expected = pruned_tokens(tiny, inputs, RRQR, 5, max_new_tokens=4)
    with foveate.attach(tiny, RRQR, keep=5):
        output = tiny.generate(inputs["input_ids"], return_dict_in_generate=True, max_new_tokens=4, **rest)
        named = tiny.generate(inputs=inputs["input_ids"], max_new_tokens=4, **rest)
    assert new_tokens(output.sequences, inputs) == new_tokens(named, inputs) == expected


@pytest.mark.parametrize(
    "options", [{}, {"min_new_tokens": 9, "max_new_tokens": 9}, {"max_new_tokens": 3}], ids=str
)
def test_lengths_of_new_tokens_are_left_alone(tiny, options):
    inputs = tiny_prompt()
    expected = tiny.generate(**inputs, **options).shape
    with foveate.attach(tiny, RRQR, keep=5):
        assert tiny.generate(**inputs, **options).shape == expected


@pytest.mark.parametrize("where", ["keyword", "config", "model"])
def test_length_limits_count_as_if_nothing_were_pruned(tiny, where):
    inputs = tiny_prompt()
    length = inputs["input_ids"].shape[1]
    options = {"max_length": length + 6, "min_length": length + 6}
    if where == "config":
        options = {"generation_config": GenerationConfig(**options, pad_token_id=0, suppress_tokens=[IMAGE_TOKEN])}
    before = tiny.generation_config.max_length
    if where == "model":
        tiny.generation_config.max_length, options = length + 6, {}
    try:
        expected = tiny.generate(**inputs, **options).shape
        with foveate.attach(tiny, RRQR, keep=5):
            assert tiny.generate(**inputs, **options).shape == expected == (1, length + 6)
    finally:
        tiny.generation_config.max_length = before


def test_a_plain_forward_is_pruned(tiny):
    inputs = tiny_prompt((1, 2))
    pruned = foveate.prune(tiny, inputs, RRQR, keep=5)
    with foveate.attach(tiny, RRQR, keep=5) as attached:
        by_name = tiny(**inputs).logits
        by_place = tiny(inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"]).logits
    assert torch.allclose(by_name, tiny(**pruned).logits, atol=1e-5)
    assert torch.equal(by_name, by_place)
    assert [k.tolist() for k in attached.last.kept] == [k.tolist() for k in pruned.kept]


def test_gradients_reach_the_vision_tower_through_a_forward(tiny):
    inputs = tiny_prompt()
    weight = tiny.model.multi_modal_projector.linear_1.weight
    with foveate.attach(tiny, RRQR, keep=5) as attached:
        tiny(**inputs).logits.sum().backward()
        assert not attached.last["mm_encoder_outputs"]["image"].pooler_output[0].requires_grad
    assert weight.grad.abs().sum() > 0
    tiny.zero_grad()


def test_text_alone_passes_untouched(tiny):
    inputs = {name: value for name, value in tiny_prompt((0,)).items() if name != "pixel_values"}
    expected = tiny.generate(**inputs, max_new_tokens=5)
    with foveate.attach(tiny, RRQR, keep=5) as attached:
        assert torch.equal(tiny.generate(**inputs, max_new_tokens=5), expected)
        assert attached.last is None


def test_blocks_nest_and_the_newest_rules(tiny):
    inputs = tiny_prompt()
    with foveate.attach(tiny, RRQR, keep=5) as outer:
        with foveate.attach(tiny, foveate.UniformGrid(), keep=9) as inner:
            tiny.generate(**inputs, max_new_tokens=1)
        assert outer.last is None
        assert inner.last.report.tokens_after == [9]
        tiny.generate(**inputs, max_new_tokens=1)
        assert outer.last.report.tokens_after == [5]
    assert untouched(tiny)


def test_an_exception_restores_the_model(tiny):
    with pytest.raises(KeyError), foveate.attach(tiny, RRQR, keep=5):
        raise KeyError
    assert untouched(tiny)
    with foveate.attach(tiny, RRQR, keep=5), pytest.raises(foveate.InvalidInputs):
        tiny.generate(**{**tiny_prompt((2,)), "pixel_values": torch.zeros(1, 3, 24, 24)})
    assert untouched(tiny)


def test_an_instances_own_generate_is_put_back(tiny):
    def own(*args, **kwargs):
        return type(tiny).generate(tiny, *args, **kwargs)

    tiny.generate = own
    try:
        with foveate.attach(tiny, RRQR, keep=5) as attached:
            tiny.generate(**tiny_prompt(), max_new_tokens=1)
        assert attached.last is not None
        assert tiny.__dict__["generate"] is own
    finally:
        del tiny.generate


def test_blocks_may_overlap_and_close_in_any_order(tiny):
    first, second = foveate.attach(tiny, RRQR, keep=5), foveate.attach(tiny, RRQR, keep=9)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    with_second = tiny.generate(**tiny_prompt(), max_new_tokens=4)
    second.__exit__(None, None, None)
    assert untouched(tiny)
    inputs = tiny_prompt()
    assert new_tokens(with_second, inputs) == pruned_tokens(tiny, inputs, RRQR, 9, max_new_tokens=4)


def test_two_threads_generate_at_once(tiny):
    prompts = [tiny_prompt((1,), seed=seed) for seed in range(6)]
    method = foveate.ResPrune(alpha=0)  # taps the CLS attention: hooks of one thread must not see the other's
    expected = [pruned_tokens(tiny, inputs, method, 5, max_new_tokens=6) for inputs in prompts]
    found = [None] * len(prompts)

    def work(start):
        for index in range(start, len(prompts), 2):
            with foveate.attach(tiny, method, keep=5):
                found[index] = new_tokens(tiny.generate(**prompts[index], max_new_tokens=6), prompts[index])

    threads = [threading.Thread(target=work, args=(start,)) for start in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected
    assert untouched(tiny)


def test_a_streamer_in_a_thread_is_pruned_too(bundled):
    model, processor = bundled
    image = noise(0)
    inputs = processor(images=image, text="USER: <image>\nIs there a red circle? ASSISTANT:", return_tensors="pt")
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True)
    expected = pruned_tokens(model, inputs, foveate.SPARE(), 32, max_new_tokens=4)[0]
    with foveate.attach(model, foveate.SPARE(), keep=32) as attached:
        thread = threading.Thread(
            target=model.generate, kwargs={**inputs, "max_new_tokens": 4, "streamer": streamer}
        )
        thread.start()
        text = "".join(streamer)
        thread.join()
    assert text.strip() == processor.decode(expected, skip_special_tokens=False).strip()
    assert attached.last.report.tokens_after == [32]


@pytest.mark.parametrize("method", [foveate.SPARE(), foveate.ResPrune()], ids=repr)
def test_the_image_text_to_text_pipeline(bundled, method):
    model, processor = bundled
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    images = [noise(1), noise(2)]
    chats = [
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": image},
                    {"type": "text", "text": "How many stars are there?"},
                ],
            }
        ]
        for image in images
    ]
    with foveate.attach(model, method, keep=48) as attached:
        one = pipe(text=chats[0], max_new_tokens=4, return_full_text=False)
        assert attached.last.report.tokens_after == [48]
        pipe(text=chats, max_new_tokens=4, batch_size=2, return_full_text=False)
        assert attached.last.report.tokens_after == [48, 48]
    inputs = processor.apply_chat_template(
        chats[0], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    pruned = foveate.prune(model, inputs, method, keep=48)
    output = model.generate(**pruned, max_new_tokens=4)[0, pruned["input_ids"].shape[1] :]
    assert one[0]["generated_text"].strip() == processor.decode(output, skip_special_tokens=True).strip()
    assert untouched(model)


def test_what_is_refused_is_refused_at_once(tiny):
    with pytest.raises(foveate.InvalidBudget), foveate.attach(tiny, RRQR, keep=0):
        pass
    with pytest.raises(foveate.UnsupportedModel), foveate.attach(torch.nn.Linear(1, 1), RRQR, keep=1):
        pass
    with foveate.attach(tiny, RRQR, keep=5), pytest.raises(foveate.InvalidInputs, match="attached"):
        tiny.generate(**foveate.prune(tiny, tiny_prompt(), RRQR, keep=5))
    inputs = tiny_prompt()
    cache = tiny(**inputs, use_cache=True)[CACHE]
    with foveate.attach(tiny, RRQR, keep=5), pytest.raises(foveate.InvalidInputs, match="KV cache"):
        tiny(**inputs, **{CACHE: cache})
    assert untouched(tiny)
