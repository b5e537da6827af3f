"""What people put around models: PEFT, accelerate, quantised and half weights, compilers, pipelines, threads.

The oracle is that of `test_families`: the same altered model on the full prompt, dropped tokens masked out. What
alters weights must alter the logits of the full prompt too, or its test would prove nothing.
"""

import threading
from collections import UserDict
from functools import cache, partial

import accelerate
import peft
import pytest
import torch
from accelerate.utils import send_to_device
from transformers import BatchFeature, BitsAndBytesConfig, TextIteratorStreamer, pipeline

import foveate
from conftest import COMPILES, noise
from foveate.hf.unwrap import unwrap
from test_families import NAMES, masked, model_of
from zoo import ZOO

TRIED = ("llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "internvl", "smolvlm")
FAMILIES = [name for name in TRIED if name in NAMES]
ROWS, KEEP, NEW = (1, 2), 0.6, 4
RRQR = foveate.RRQR()
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@cache
def prompt_of(name):
    return ZOO[name].prompt(ROWS)


@cache
def stock_logits(name):
    return model_of(name)(**prompt_of(name)).logits


def untouched(model):
    return "generate" not in model.__dict__ and not model._forward_pre_hooks


def new_tokens(model, inputs, **options):
    return model.generate(**{**inputs, "max_new_tokens": NEW, **options})[
        :, inputs["input_ids"].shape[1] :
    ].tolist()


def lora(model, _folder=None, task=None, mixed=False):
    """Adapters in tower, projector and language model, of weights that are not zero."""
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type=task)
    return peft.get_peft_model(model, config, mixed=mixed)


def dispatched(model, folder):
    """Half of the model's parts on the CPU, half on disk."""
    parts = [name for name, part in model.model.named_children()]
    places = {"model." + part: ("cpu", "disk")[index % 2] for index, part in enumerate(parts)}
    places["lm_head"] = "disk"
    return accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=folder, force_hooks=True)


def reloaded(model, folder, **options):
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder, device_map={"": "cpu"}, dtype=torch.float32, **options).eval()


def four_bits(model, folder):
    options = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    return reloaded(model, folder, quantization_config=options)


# What is put around a model, whether it alters its weights, and which families it is tried on: those that differ
# in what it touches.
SOME = ["llava", "qwen3_vl"]
AROUND = {
    "LoRA": (lora, True, FAMILIES),
    "LoRA for causal LM": (partial(lora, task="CAUSAL_LM"), True, SOME),
    "LoRA in a mixed model": (partial(lora, mixed=True), True, SOME),
    "offloaded to CPU": (lambda model, _: accelerate.cpu_offload(model, "cpu"), False, FAMILIES),
    "offloaded to disk": (lambda model, at: accelerate.disk_offload(model, at, "cpu") or model, False, SOME),
    "dispatched": (dispatched, False, FAMILIES),
    "loaded by device map": (reloaded, False, SOME),
    "four bits": (four_bits, True, FAMILIES),
}


def close(ours, expected):
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() < 1e-4


def attended(output, pruned):
    return output.logits[pruned["attention_mask"].bool()]


@pytest.mark.parametrize(("around", "name"), [(around, name) for around in AROUND for name in AROUND[around][2]])
def test_what_is_around_a_model_leaves_pruning_exact(name, around, tmp_path):
    put, alters, _ = AROUND[around]
    inputs = prompt_of(name)
    outer = put(ZOO[name].build(), str(tmp_path))
    inner = unwrap(outer)
    assert ((outer(**inputs).logits - stock_logits(name)).abs().max() > 0.05) == alters
    pruned = foveate.prune(outer, inputs, RRQR, keep=KEEP)
    full, stays = masked(name, inputs, pruned)
    logits, tokens = outer(**full).logits[stays], new_tokens(outer, full)
    close(attended(outer(**pruned), pruned), logits)
    assert new_tokens(outer, pruned) == tokens
    for given in dict.fromkeys([outer, inner]):
        with foveate.attach(given, RRQR, keep=KEEP) as attached:
            assert new_tokens(outer, inputs) == tokens
            close(attended(outer(**inputs), attached.last), logits)
            assert attached.last.report.tokens_after == pruned.report.tokens_after
    assert untouched(inner)
    assert (attended(outer(**pruned), pruned) - outer(**inputs).logits[stays]).abs().max() > 0.05  # control


@pytest.mark.parametrize(
    "put", [lora, lambda model: accelerate.cpu_offload(model, "cpu")], ids=["LoRA", "offload"]
)
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_put_around_a_model_inside_a_block(name, put):
    model, inputs = ZOO[name].build(), prompt_of(name)
    with foveate.attach(model, RRQR, keep=KEEP) as attached:
        outer = put(model)
        tokens, output = new_tokens(outer, inputs), outer(**inputs)
        pruned = attached.last
    assert untouched(model)
    full, stays = masked(name, inputs, pruned)
    close(attended(output, pruned), outer(**full).logits[stays])
    assert tokens == new_tokens(outer, full)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_disabled_adapter_does_nothing(name):
    outer, plain, inputs = lora(ZOO[name].build()), model_of(name), prompt_of(name)
    pruned = foveate.prune(plain, inputs, RRQR, keep=KEEP)
    expected, tokens = plain(**pruned).logits, new_tokens(plain, pruned)
    with foveate.attach(outer, RRQR, keep=KEEP):
        with outer.disable_adapter():
            close(outer(**inputs).logits, expected)
            assert new_tokens(outer, inputs) == tokens
        assert (outer(**inputs).logits - expected).abs().max() > 0.05  # control


@pytest.mark.parametrize("task", ["attach", "prune"])
@pytest.mark.parametrize("kind", [peft.PromptTuningConfig, peft.PrefixTuningConfig])
def test_a_learned_prompt_is_refused(kind, task):
    """PEFT ignores positions there, silently: pruned answers would differ from the masked prompt's."""
    model, inputs = ZOO["llava"].build(), prompt_of("llava")
    config = kind(num_virtual_tokens=4, task_type="CAUSAL_LM")
    refused = pytest.raises(foveate.UnsupportedModel, match=r"^PEFT with \w+, which ignores the positions")
    if task == "prune":
        with refused:
            foveate.prune(peft.get_peft_model(model, config), inputs, RRQR, keep=KEEP)
    else:
        with foveate.attach(model, RRQR, keep=KEEP):
            outer = peft.get_peft_model(model, config)
            with refused:
                outer.generate(**inputs, max_new_tokens=NEW)
            with pytest.raises(foveate.FoveateError):
                outer(**inputs)
    assert untouched(model)


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_offloaded_weights_that_stock_does_not_fetch_are_refused(name):
    model, inputs = accelerate.cpu_offload(ZOO[name].build(), "cpu"), prompt_of(name)
    with pytest.raises(NotImplementedError, match="meta"):
        model.generate(**inputs, max_new_tokens=1)  # stock: works one day, and so does pruning
    with pytest.raises(foveate.UnsupportedModel, match="offloaded"):
        foveate.prune(model, inputs, RRQR, keep=KEEP)


@pytest.mark.parametrize("method", [foveate.SPARE(), foveate.ResPrune()], ids=repr)
def test_text_signals_of_an_offloaded_model(bundled, method):
    model, processor = bundled
    inputs = processor(images=noise(3), text="USER: <image>\nIs there a star? ASSISTANT:", return_tensors="pt")
    expected = foveate.prune(model, inputs, method, keep=32)
    offloaded = accelerate.cpu_offload(foveate.mini.load()[0], "cpu")
    pruned = foveate.prune(offloaded, inputs, method, keep=32)
    assert pruned.kept[0].equal(expected.kept[0])
    assert new_tokens(offloaded, pruned) == new_tokens(model, expected)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision(name, dtype):
    """Equal up to rounding, which is that of sums in other orders: far less than what other tokens change."""
    model = ZOO[name].build().to(HALF[dtype])
    inputs = BatchFeature(dict(prompt_of(name))).to(dtype=HALF[dtype])
    assert inputs["pixel_values"].dtype == HALF[dtype]
    pruned = foveate.prune(model, inputs, RRQR, keep=KEEP)
    full, stays = masked(name, dict(inputs), pruned)
    expected = model(**full).logits[stays].float()
    ours = attended(model(**pruned), pruned).float()
    unmasked = model(**{**full, "attention_mask": inputs["attention_mask"]}).logits[stays].float()
    assert ours.isfinite().all()
    assert (ours - expected).norm() < 0.03 * expected.norm()
    assert (ours - unmasked).norm() > 0.1 * expected.norm()  # control
    tokens = new_tokens(model, pruned)
    with foveate.attach(model, RRQR, keep=KEEP):
        assert new_tokens(model, inputs) == tokens


@pytest.mark.parametrize("name", FAMILIES)
def test_eight_bits(name, tmp_path):
    """Activations are rounded per token. A difference of 1e-6 may cross a rounding step; no more than a few do."""
    plain, inputs = ZOO[name].build(), prompt_of(name)
    options = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    model = reloaded(plain, tmp_path, quantization_config=options)
    assert (model(**inputs).logits - stock_logits(name)).abs().max() > 0.05
    pruned = foveate.prune(model, inputs, RRQR, keep=KEEP)
    full, stays = masked(name, inputs, pruned)
    expected, ours = model(**full).logits[stays], attended(model(**pruned), pruned)
    unmasked = model(**{**full, "attention_mask": inputs["attention_mask"]}).logits[stays]
    assert (ours - expected).norm() < 0.02 * expected.norm() < 0.2 * (ours - unmasked).norm()
    assert new_tokens(model, pruned) == new_tokens(model, full)


@COMPILES
def test_a_compiled_model_is_pruned_in_the_block_and_only_there():
    """What was compiled before the hook was there must not be used in it, nor afterwards what was with it."""
    torch.compiler.reset()
    model, inputs = ZOO["llava"].build(), ZOO["llava"].prompt()
    whole, pruned = model(**inputs).logits, foveate.prune(model, inputs, RRQR, keep=KEEP)
    logits, tokens = model(**pruned).logits, new_tokens(model, pruned)
    compiled = torch.compile(model, backend="eager")
    close(compiled(**inputs).logits, whole)
    with foveate.attach(compiled, RRQR, keep=KEEP):
        close(compiled(**inputs).logits, logits)
        assert new_tokens(compiled, inputs) == tokens
    close(compiled(**inputs).logits, whole)
    assert untouched(model)


@COMPILES
def test_a_forward_compiled_inside_a_block():
    torch.compiler.reset()
    model, inputs = ZOO["llava"].build(), ZOO["llava"].prompt()
    options = {"max_new_tokens": 2, "cache_implementation": "static"}  # one step of each kind to compile
    tokens = new_tokens(model, foveate.prune(model, inputs, RRQR, keep=KEEP), **options)
    whole = model(**inputs).logits
    with foveate.attach(model, RRQR, keep=KEEP):
        model.forward = torch.compile(model.forward, backend="eager")
        assert new_tokens(model, inputs, **options) == tokens
    close(model(**inputs).logits, whole)
    assert untouched(model)


ASSISTANTS = {
    "prompt lookup": lambda name: {"prompt_lookup_num_tokens": 3},
    "assistant": lambda name: {"assistant_model": assistant(name)},
}


@cache
def assistant(name):
    """Of the same family, and at times of another opinion."""
    model = ZOO[name].build()
    for parameter in model.parameters():
        parameter.mul_(1 + 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    return model


@pytest.mark.parametrize("both", [False, True], ids=["attached", "both attached"])
@pytest.mark.parametrize("way", ASSISTANTS)
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("qwen3_vl", "internvl")])
def test_assisted_decoding(name, way, both):
    model, inputs, options = model_of(name), ZOO[name].prompt(), ASSISTANTS[way](name)
    pruned = foveate.prune(model, inputs, RRQR, keep=KEEP)
    tokens = new_tokens(model, masked(name, inputs, pruned)[0])
    assert new_tokens(model, pruned, **options) == tokens
    with (
        foveate.attach(model, RRQR, keep=KEEP),
        foveate.attach(assistant(name) if both else model, RRQR, keep=KEEP),
    ):
        assert new_tokens(model, inputs, **options) == tokens
    assert untouched(model)
    assert untouched(assistant(name))


def test_another_models_generate_inside_one_is_pruned_too():
    """A judge that a logits processor asks, say: it must not be taken for an assistant."""
    model, judge = ZOO["llava"].build(), ZOO["internvl"].build()
    asked = []

    def ask(ids, scores):
        asked.append(judge.generate(**ZOO["internvl"].prompt(), max_new_tokens=1))
        return scores

    inputs = ZOO["llava"].prompt()
    with foveate.attach(model, RRQR, keep=KEEP), foveate.attach(judge, RRQR, keep=4) as attached:
        model.generate(**inputs, max_new_tokens=2, logits_processor=[ask])
        model.generate(**inputs, max_new_tokens=1)
    assert len(asked) == 2
    assert attached.last.report.tokens_after == [4]


WAYS_IN = {
    "one attach": lambda model, inputs: new_tokens(model, inputs),
    "prune": lambda model, inputs: new_tokens(model, foveate.prune(model, inputs, RRQR, keep=KEEP)),
}


@pytest.mark.parametrize("way", WAYS_IN)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])  # Qwen keeps a state of the latest prompt
def test_two_threads(name, way):
    model = model_of(name)
    prompts = [ZOO[name].prompt(rows, seed=seed) for seed, rows in enumerate([(1,), (2,), (1, 2), (2, 0, 1)])]
    expected = [WAYS_IN["prune"](model, inputs) for inputs in prompts]
    found, start = [None] * len(prompts), threading.Barrier(2)

    def work(first):
        with torch.no_grad():
            start.wait()
            for index in range(first, len(prompts), 2):
                found[index] = WAYS_IN[way](model, prompts[index])

    def both():
        threads = [threading.Thread(target=work, args=(first,)) for first in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    if way == "prune":
        both()
    else:
        with foveate.attach(model, RRQR, keep=KEEP):
            both()
    assert found == expected
    assert untouched(model)


CHAT = [
    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    for text in ("How many stars are there?", "What colour is the circle?", "Is there a red cross in the picture?")
]


@pytest.mark.parametrize(
    ("batch_size", "options"),
    [(1, {}), (2, {}), (1, {"num_beams": 3}), (2, {"num_beams": 2})],
    ids=str,
)
def test_pipelines_answer_as_generate_does_on_pruned_prompts(bundled, batch_size, options):
    model, processor = bundled
    chats = []
    for seed, [message] in enumerate(CHAT):
        picture, text = message["content"]
        chats.append([{**message, "content": [{**picture, "image": noise(seed)}, text]}])
    options = {"max_new_tokens": 4, "num_beams": 1, **options}
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    with foveate.attach(model, RRQR, keep=24):
        answers = pipe(text=chats, batch_size=batch_size, return_full_text=False, generate_kwargs=options)
        [alone] = pipe(text=chats[0], return_full_text=False, generate_kwargs=options)
    expected = []
    for chat in chats:
        inputs = processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        pruned = foveate.prune(model, inputs, RRQR, keep=24)
        expected += processor.batch_decode(new_tokens(model, pruned, **options), skip_special_tokens=True)
    texts = [answer[0]["generated_text"].strip() for answer in answers]
    assert texts == [text.strip() for text in expected]
    assert alone["generated_text"].strip() == texts[0]
    assert untouched(model)


def test_a_streamer_streams_what_generate_returns(bundled):
    model, processor = bundled
    inputs = processor(images=noise(4), text="USER: <image>\nWhere is the star? ASSISTANT:", return_tensors="pt")
    pruned = foveate.prune(model, inputs, RRQR, keep=24)
    [expected] = processor.batch_decode(new_tokens(model, pruned, min_new_tokens=NEW), skip_special_tokens=True)
    for given, attached in ((pruned, False), (inputs, True)):
        streamer = TextIteratorStreamer(
            processor.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=30
        )
        options = {**given, "max_new_tokens": NEW, "min_new_tokens": NEW, "streamer": streamer}
        with foveate.attach(model if attached else ZOO["llava"].build(), RRQR, keep=24):
            thread = threading.Thread(target=model.generate, kwargs=options)
            thread.start()
            pieces = list(streamer)
            thread.join()
        assert "".join(pieces).strip() == expected.strip()
        assert len([piece for piece in pieces if piece]) > 1


CONTAINERS = {
    "UserDict": UserDict,
    "BatchFeature": BatchFeature,
    "moved BatchFeature": lambda inputs: BatchFeature(inputs).to("cpu", torch.float32),
    "send_to_device": lambda inputs: send_to_device(inputs, "cpu"),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", FAMILIES)
def test_containers_of_inputs(name, container):
    model, inputs = model_of(name), prompt_of(name)
    expected = new_tokens(model, foveate.prune(model, inputs, RRQR, keep=KEEP))
    contained = CONTAINERS[container](dict(inputs))
    assert new_tokens(model, foveate.prune(model, contained, RRQR, keep=KEEP)) == expected
    with foveate.attach(model, RRQR, keep=KEEP):
        assert new_tokens(model, contained) == expected


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_pruned_prompts_moved_by_accelerate(name, options):
    model = model_of(name)
    pruned = foveate.prune(model, prompt_of(name), RRQR, keep=KEEP)
    expected = new_tokens(model, pruned, **options)
    assert new_tokens(model, send_to_device(dict(pruned), torch.device("cpu")), **options) == expected


# A default device: what is made without one must not land there. "meta" has no values at all.


@pytest.fixture
def elsewhere():
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def on_host(work):
    """``work()`` with the default device that torch starts with."""
    with torch.device("cpu"):
        return work()


@pytest.mark.parametrize("name", NAMES)
def test_a_default_device_changes_no_prompt(name, elsewhere):
    model, prompt = on_host(lambda: model_of(name)), on_host(lambda: prompt_of(name))
    theirs = on_host(lambda: foveate.prune(model, prompt, RRQR, keep=KEEP))
    ours = foveate.prune(model, prompt, RRQR, keep=KEEP)
    for argument in ("input_ids", "attention_mask", "position_ids"):
        assert torch.equal(ours[argument], theirs[argument])
    assert torch.equal(ours.columns_kept, theirs.columns_kept)
    assert ours.report.residual_energy == theirs.report.residual_energy
    assert all(part.device.type == "cpu" for part in ours.kept_in_grids(0))


@pytest.mark.parametrize("method", sorted(foveate.METHODS))
def test_a_default_device_changes_no_choice(method, elsewhere, bundled):
    model, processor = bundled
    inputs = on_host(
        lambda: processor(images=noise(3), text="USER: <image>\nWhat is red? ASSISTANT:", return_tensors="pt")
    )
    theirs = on_host(lambda: foveate.prune(model, inputs, foveate.METHODS[method](), keep=0.25))
    ours = foveate.prune(model, inputs, foveate.METHODS[method](), keep=0.25)
    assert torch.equal(ours.kept[0], theirs.kept[0])
    for kind, output in ours["mm_encoder_outputs"].items():
        same = zip(output.pooler_output, theirs["mm_encoder_outputs"][kind].pooler_output, strict=True)
        assert all(torch.equal(mine, other) for mine, other in same)


@pytest.mark.parametrize("method", [RRQR, foveate.FastV(layer=1), foveate.SparseVLM()], ids=repr)
def test_a_default_device_changes_no_logits_inside_a_block(method, elsewhere):
    model, prompt = on_host(lambda: model_of("llava")), on_host(lambda: prompt_of("llava"))
    with foveate.attach(model, method, keep=9):
        assert torch.equal(model(**prompt).logits, on_host(lambda: model(**prompt).logits))


def test_the_default_device_of_these_tests_reaches_what_names_none(elsewhere):
    assert torch.zeros(1).device.type == "meta"
