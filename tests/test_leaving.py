"""However a call is left, and from wherever, the model is as it was; calls of several models do not mix."""

import asyncio
import gc
import threading
from contextlib import suppress
from functools import cache

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import LogitsProcessor, StoppingCriteria, StoppingCriteriaList

import foveate
from conftest import CACHE
from zoo import ZOO

FASTV, RRQR = foveate.FastV(layer=1), foveate.RRQR()


class Late(BaseException):
    """As a time-out of a test runner or a server raises."""


ERRORS = (
    KeyboardInterrupt,
    SystemExit,
    asyncio.CancelledError,
    GeneratorExit,
    Late,
    ZeroDivisionError,
    TimeoutError,
)


@cache
def built(name="llava"):
    return ZOO[name].build()


def prompt(name="llava", rows=(1,), seed=0):
    inputs = dict(ZOO[name].prompt(rows, seed=seed))
    inputs.pop("labels", None)
    return inputs


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def changed(model):
    return sorted(name for name in model.__dict__ if name in ("generate", "_merge_criteria_processor_list"))


class Raising(foveate.UniformGrid):
    """A method that is left half-way."""

    error = None

    def rank(self, tokens, k):
        if Raising.error is not None:
            raise Raising.error
        return super().rank(tokens, k)


class Place:
    """Something that raises where it is put, as often as it is asked."""

    def __init__(self, error):
        self.error = error

    def hook(self, *_):
        raise self.error

    class Processor(LogitsProcessor):
        def __init__(self, error):
            self.error = error

        def __call__(self, input_ids, scores):
            raise self.error

    class Criterion(StoppingCriteria):
        def __init__(self, error):
            self.error = error

        def __call__(self, input_ids, scores, **more):
            raise self.error

    class Streamer:
        def __init__(self, error):
            self.error = error

        def put(self, value):
            raise self.error

        def end(self):
            pass


MODULES = {
    "encoder": lambda model: model.base_model.vision_tower,
    "projector": lambda model: model.base_model.multi_modal_projector,
    "embeddings": lambda model: model.get_input_embeddings(),
    "first layer": lambda model: model.get_decoder().layers[0],
    "layer that drops": lambda model: model.get_decoder().layers[1],
    "last layer": lambda model: model.get_decoder().layers[-1],
    "head": lambda model: model.lm_head,
}
ARGUMENTS = {
    "processor": lambda error: {"logits_processor": [Place.Processor(error)]},
    "criterion": lambda error: {"stopping_criteria": StoppingCriteriaList([Place.Criterion(error)])},
    "streamer": lambda error: {"streamer": Place.Streamer(error)},
}
CALLS = {
    "forward": lambda model, inputs, options: model(**inputs),
    "generate": lambda model, inputs, options: model.generate(**inputs, max_new_tokens=2, **options),
}
PLACES = [(call, place) for call in CALLS for place in (*MODULES, "method")]
PLACES += [("generate", place) for place in ARGUMENTS]


def left(model, call, place, error):
    """One call that is left there, inside whatever block is open."""
    options, handle = {}, None
    if place in MODULES:
        handle = MODULES[place](model).register_forward_pre_hook(Place(error).hook)
    elif place in ARGUMENTS:
        options = ARGUMENTS[place](error)
    else:
        Raising.error = error
    try:
        with pytest.raises(type(error), match="left"):
            CALLS[call](model, prompt(), options)
    finally:
        Raising.error = None
        if handle is not None:
            handle.remove()


@pytest.mark.parametrize(("call", "place"), PLACES)
@torch.no_grad()
def test_a_call_that_is_left_leaves_nothing_behind(call, place):
    model, inputs = built(), prompt()
    stock, before = model(**inputs).logits, hooks(model)
    method = foveate.Compose(Raising(), FASTV)
    with foveate.attach(model, method, keep=(9, 4)):
        right, inside = model(**inputs).logits, hooks(model)
        tokens = model.generate(**inputs, max_new_tokens=3)
    for kind in ERRORS:
        with foveate.attach(model, method, keep=(9, 4)):
            left(model, call, place, kind("left"))
        assert hooks(model) == before
        assert changed(model) == []
        assert torch.equal(model(**inputs).logits, stock)
        with foveate.attach(model, method, keep=(9, 4)):  # and the block itself goes on
            left(model, call, place, kind("left"))
            assert torch.equal(model(**inputs).logits, right)
            assert hooks(model) == inside
            left(model, call, place, kind("left"))
            assert torch.equal(model.generate(**inputs, max_new_tokens=3), tokens)
            assert hooks(model) == inside


@torch.no_grad()
def test_hooks_of_a_forward_are_seen_while_it_runs():
    """The control: there is something to take off."""
    model, seen = built(), []
    idle = hooks(model)
    first = model.get_decoder().layers[0]
    handle = first.register_forward_pre_hook(lambda *_: seen.append(hooks(model)))
    with foveate.attach(model, FASTV, keep=4):
        model(**prompt())
    handle.remove()
    assert seen[0] > idle + 3


def test_a_generator_that_is_abandoned_leaves_its_block():
    model = built()
    idle = hooks(model)

    def answers():
        with foveate.attach(model, FASTV, keep=4):
            while True:
                yield model.generate(**prompt(), max_new_tokens=1)

    for leave in (lambda running: running.close(), lambda running: None):
        running = answers()
        next(running)
        assert changed(model)
        leave(running)
        del running
        gc.collect()
        assert changed(model) == []
        assert hooks(model) == idle


@torch.no_grad()
def test_an_interrupt_in_another_thread_is_closed_too():
    model, inputs = built(), prompt()
    idle = hooks(model)
    with foveate.attach(model, FASTV, keep=4):

        def work():
            with suppress(KeyboardInterrupt):
                left(model, "forward", "last layer", KeyboardInterrupt("left"))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        expected = model(**inputs).logits
    assert hooks(model) == idle
    with foveate.attach(model, FASTV, keep=4):
        assert torch.equal(model(**inputs).logits, expected)


@torch.no_grad()
def test_a_block_that_ends_while_another_threads_forward_runs():
    model, inputs = built(), prompt()
    idle = hooks(model)
    reached, go, found = threading.Event(), threading.Event(), []

    def wait(*_):
        if threading.current_thread() is thread:
            reached.set()
            go.wait(10)

    def work():
        with torch.no_grad():
            found.append(model(**inputs).logits)

    with foveate.attach(model, FASTV, keep=4):
        expected = model(**inputs).logits
    thread = threading.Thread(target=work)
    handle = model.get_decoder().layers[0].register_forward_hook(wait)
    with foveate.attach(model, FASTV, keep=4):
        thread.start()
        reached.wait(10)
    go.set()
    thread.join()
    handle.remove()
    assert torch.equal(found[0], expected)
    assert hooks(model) == idle


# Two at a time


def asked(model, inputs, way):
    """What a judge says."""
    if way == "forward":
        with torch.no_grad():
            return model(**inputs).logits
    return model.generate(**inputs, max_new_tokens=2)


WAYS = ("generate", "forward", "next turn")


@pytest.mark.parametrize("inner", ["the same", "another"])
@pytest.mark.parametrize("outer_method", [RRQR, FASTV], ids=repr)
@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_a_judge_asked_inside_generate(way, outer_method, inner):
    model = built()
    judge = model if inner == "the same" else built("qwen2_5_vl")
    judge_name = "llava" if inner == "the same" else "qwen2_5_vl"
    inputs, judged = prompt(), prompt(judge_name, seed=3)

    def turn():
        first = judge.generate(**judged, max_new_tokens=2, return_dict_in_generate=True)
        return torch.cat([first.sequences, torch.tensor([[7, 8, 9]])], 1), first[CACHE]

    def ask():
        if way != "next turn":
            return asked(judge, judged, way)
        ids, kv_cache = turn()
        return judge.generate(input_ids=ids, **{CACHE: kv_cache}, max_new_tokens=2)

    def run(processors):
        return model.generate(**inputs, max_new_tokens=3, logits_processor=processors)

    said = []

    def judging(ids, scores):
        said.append(ask())
        return scores

    with foveate.attach(model, outer_method, keep=4):
        expected = run([])
        if judge is model:
            right = ask()
            found = run([judging])
        else:
            with foveate.attach(judge, RRQR, keep=3):
                right = ask()
                found = run([judging])
    assert torch.equal(found, expected)
    assert len(said) == 3
    assert all(torch.equal(one, right) for one in said)


@pytest.mark.parametrize("outer_method", [RRQR, FASTV], ids=repr)
@pytest.mark.parametrize("way", ["generate", "forward"])
@torch.no_grad()
def test_a_judge_asked_inside_a_forward(way, outer_method):
    model, judge, inputs, judged = built(), built("qwen2_5_vl"), prompt(), prompt("qwen2_5_vl")
    said, idle = [], [hooks(model), hooks(judge)]
    with foveate.attach(model, outer_method, keep=4), foveate.attach(judge, FASTV, keep=3) as attached:
        expected, right = model(**inputs).logits, asked(judge, judged, way)
        for layer in (0, 1):
            handle = (
                model.get_decoder()
                .layers[layer]
                .register_forward_hook(lambda *_: said.append(asked(judge, judged, way)) or None)
            )
            assert torch.equal(model(**inputs).logits, expected)
            handle.remove()
        assert attached.dropped is not None
    assert len(said) == 2
    assert all(torch.equal(one, right) for one in said)
    assert [hooks(model), hooks(judge)] == idle


@torch.no_grad()
def test_a_teacher_and_a_student_step_by_step():
    """Two attached models in turns, each with its own cache."""
    pair = {name: (built(name), prompt(name)) for name in ("llava", "qwen2_5_vl")}
    expected = {}
    for name, (model, inputs) in pair.items():
        with foveate.attach(model, RRQR, keep=4):
            expected[name] = model.generate(**inputs, max_new_tokens=4)[:, -4:].tolist()
    teacher, student = built("llava"), built("qwen2_5_vl")
    with foveate.attach(teacher, RRQR, keep=4), foveate.attach(student, RRQR, keep=4):
        outputs = {name: model(**inputs, use_cache=True) for name, (model, inputs) in pair.items()}
        found = {name: [] for name in pair}
        for _ in range(4):
            for name, (model, _inputs) in pair.items():
                logits = outputs[name].logits[:, -1].clone()
                logits[:, list(model.generation_config.suppress_tokens)] = -torch.inf
                token = logits.argmax(-1, keepdim=True)
                found[name].append(int(token))
                outputs[name] = model(input_ids=token, **{CACHE: outputs[name][CACHE]})
    assert {name: [tokens] for name, tokens in found.items()} == expected


# start() and stop()


def test_start_and_stop():
    model, inputs = built(), prompt()
    with foveate.attach(model, RRQR, keep=4):
        expected = model.generate(**inputs, max_new_tokens=3)
    attached = foveate.attach(model, RRQR, keep=4)
    assert changed(model) == []
    assert attached.start() is attached.start()
    assert torch.equal(model.generate(**inputs, max_new_tokens=3), expected)
    assert attached.last.report.tokens_after == [4]
    attached.stop()
    attached.stop()
    assert changed(model) == []
    with attached.start():  # again, and ended by the block
        assert changed(model)
    assert changed(model) == []
    assert attached.last is not None


def test_a_block_is_entered_once_at_a_time():
    attached = foveate.attach(built(), RRQR, keep=4)
    with attached, pytest.raises(foveate.InvalidOption, match="entered twice"), attached:
        pass
    with attached:
        assert changed(built())
    assert changed(built()) == []


def test_what_was_never_started_says_so():
    with pytest.warns(UserWarning, match=r"RRQR\(.*pruned nothing: use it in a with block, or call its start"):
        foveate.attach(built(), RRQR, keep=4)  # nobody keeps it


def test_what_runs_goes_on_without_a_name():
    model = built()
    foveate.attach(model, RRQR, keep=4).start()
    gc.collect()
    assert changed(model)
    for block in list(model.generate.installed.blocks):
        block.stop()
    assert changed(model) == []


def test_flash_attention_and_a_prefill_in_chunks():
    """Gaps look like packed sequences to it there; only the name of the attention is read, so no GPU is needed."""
    model, inputs = ZOO["llava"].build(), prompt()
    model.config.get_text_config()._attn_implementation = "flash_attention_2"
    with foveate.attach(model, RRQR, keep=4), pytest.raises(foveate.InvalidOption, match="prefill_chunk_size=8"):
        model.generate(**inputs, max_new_tokens=1, prefill_chunk_size=8)
    model.config.get_text_config()._attn_implementation = "sdpa"
    with foveate.attach(model, RRQR, keep=4):
        whole = model.generate(**inputs, max_new_tokens=3)
        chunks = model.generate(**inputs, max_new_tokens=3, prefill_chunk_size=8)
    if Version(transformers.__version__) >= Version("5.20"):  # before, stock loses the images' features in chunks
        assert torch.equal(chunks, whole)
