"""What pruning adds to a device's queue beside the encoder and the engine, counted on a CPU."""

from contextlib import contextmanager

import pytest
import torch

import foveate
from conftest import PROMPTS, noise, tiny_prompt
from foveate.bench.speed.queue import count_queue
from foveate.families import PIXELS, family_of
from foveate.flow.encode import run_encoder
from test_families import NAMES
from zoo import ZOO

OPERATIONS, AT_ONE, READS, GROWTH = 78, 60, 3, 1.3
# Every method that ranks and needs no text, on the families whose tokens lie in the most different ways.
METHODS = {
    "uniform": foveate.UniformGrid(),
    "random": foveate.Random(),
    "norm": foveate.NormTopK(),
    "rrqr": foveate.RRQR(),
    "spare": foveate.SPARE(relevance=None),
    "resprune": foveate.ResPrune(alpha=0),
    "dpp": foveate.DPP(),
    "divprune": foveate.DivPrune(),
    "dart": foveate.DART(),
    "fastervlm": foveate.FasterVLM(),
    "vispruner": foveate.VisPruner(),
    "scope": foveate.SCOPE(),
}
# The loops of these engines are theirs, k steps or rounds long: their own operations are not the flow's.
STEPS = {"divprune", "scope", "dart", "vispruner"}
EACH_FAMILY = ("uniform", "rrqr", "fastervlm")
FEW = ("llava", "llava_next", "qwen2_5_vl")
CASES = [(name, method) for name in NAMES for method in EACH_FAMILY]
CASES += [(name, method) for name in FEW for method in METHODS if method not in EACH_FAMILY]


def added(model, inputs, method, **options):
    """Operations and reads of a prune, beside those of the model's own encoder."""
    family = family_of(model)
    (kind,) = [kind for kind in family.kinds if inputs.get(PIXELS[kind]) is not None]
    prune = lambda: foveate.prune(model, inputs, method, **options)  # noqa: E731
    prune()
    whole = count_queue(model, inputs, prune)
    encoder = count_queue(model, inputs, lambda: run_encoder(model, family, inputs, kind))
    return whole[0] - encoder[0], whole[1] - encoder[1]


def eight(inputs):
    """The same prompt in eight rows."""
    return {
        name: torch.cat([value] * 8) if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
    }


@pytest.mark.parametrize(("name", "method"), CASES)
def test_the_budget_of_a_prune(name, method):
    model, inputs = ZOO[name].build(), ZOO[name].prompt((1,))
    inputs.pop("labels", None)
    one = added(model, inputs, METHODS[method], keep=7)
    eight_rows = added(model, eight(inputs), METHODS[method], keep=7)
    assert one[1] <= READS
    assert eight_rows[1] <= READS
    if method in STEPS:  # as many steps, whatever the batch
        assert eight_rows[0] <= GROWTH * one[0]
        return
    assert one[0] <= AT_ONE
    assert eight_rows[0] <= min(OPERATIONS, GROWTH * one[0])


@pytest.mark.parametrize("rows", [(2,), (3, 1), (1, 0, 2)], ids=str)
@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl", "internvl", "idefics3"])
def test_several_images_and_padded_rows(name, rows):
    """Pictures of several sizes are ranked in as many groups: each costs its engine, and little else."""
    model, inputs = ZOO[name].build(), ZOO[name].prompt(rows)
    inputs.pop("labels", None)
    operations, reads = added(model, inputs, foveate.RRQR(), keep=7)
    assert reads <= READS
    assert operations <= AT_ONE


TEXTUAL = {
    "norm": foveate.NormTopK(),
    "spare": foveate.SPARE(relevance="llm"),
    "resprune": foveate.ResPrune(),
    "cdpruner": foveate.CDPruner(relevance="llm"),
    "fastervlm": foveate.FasterVLM(),
    "relevance": foveate.RelevanceTopK(),
}


@pytest.mark.parametrize("method", TEXTUAL)
def test_the_budget_of_methods_that_read_the_question(bundled, method):
    model, processor = bundled
    questions = ["What letter is on the yellow star?", "What colour is the circle?", "How many squares are there?"]
    found = []
    for batch in (1, 8):
        texts = [f"USER: <image>\n{questions[row % 3]} ASSISTANT:" for row in range(batch)]
        inputs = dict(processor(images=[noise(0)] * batch, text=texts, padding=True, return_tensors="pt"))
        found.append(added(model, inputs, TEXTUAL[method], keep=64, processor=processor))
    (one, reads), (eight_rows, more_reads) = found
    assert max(reads, more_reads) <= READS
    assert one <= AT_ONE
    assert eight_rows <= min(OPERATIONS, GROWTH * one)


def test_control_a_read_is_counted(tiny):
    pixels = torch.ones(3)
    assert count_queue(tiny, {"pixels": pixels}, lambda: pixels.sum().item()) == (1, 1)
    assert count_queue(tiny, {"pixels": pixels}, lambda: pixels[pixels > 0]) == (2, 1)
    assert count_queue(tiny, {"pixels": pixels}, lambda: torch.ones(3).sum().item()) == (0, 0)


@contextmanager
def masks_of(model):
    """What each decoder layer is handed as its mask, pass by pass."""
    found = []
    handles = [
        layer.register_forward_pre_hook(
            lambda module, arguments, options: found.append(options.get("attention_mask")), with_kwargs=True
        )
        for layer in model.get_decoder().layers
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def alike(ours, stock):
    assert len(ours) == len(stock)
    for one, other in zip(ours, stock, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


@pytest.mark.parametrize("prompt", ["one image", "batch of two"])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_each_layer_is_handed_the_mask_that_stock_makes(name, prompt):
    """Of a prompt as long: the same arguments, less the positions. Prefill and decoding."""
    model, inputs = ZOO[name].build(), ZOO[name].prompt(**PROMPTS[prompt])
    inputs.pop("labels", None)
    pruned = foveate.prune(model, inputs, foveate.RRQR(), keep=0.5)
    contiguous = {key: value for key, value in pruned.items() if key != "position_ids"}
    contiguous["position_ids"] = foveate.prune(model, inputs, foveate.RRQR(), keep=0.5, positions="compact")[
        "position_ids"
    ]
    with masks_of(model) as stock:
        model.generate(**contiguous, max_new_tokens=3)
    with masks_of(model) as ours:
        model.generate(**pruned, max_new_tokens=3)
    alike(ours, stock)
    with foveate.attach(model, foveate.RRQR(), keep=0.5), masks_of(model) as attached:
        model.generate(**inputs, max_new_tokens=3)
    alike(attached, stock)


def test_a_prompt_without_padding_has_no_mask():
    """SDPA then runs its causal kernel: a mask would take it away from every layer."""
    inputs = ZOO["llava"].prompt((1,))
    model = ZOO["llava"].build()
    with masks_of(model) as found:
        model.generate(**foveate.prune(model, inputs, foveate.RRQR(), keep=7), max_new_tokens=2)
    assert all(mask is None for mask in found)
    pruned = foveate.prune(model, inputs, foveate.RRQR(), keep=7, use_cache=False)
    with masks_of(model) as guarded:
        model.generate(**pruned, max_new_tokens=1)
    assert all(mask is not None for mask in guarded)  # the control: without a cache one column is masked


def test_a_cache_is_part_of_the_prompt(tiny):
    """What is right with a cache is wrong without one: generate() must not be told otherwise later."""
    pruned = foveate.prune(tiny, tiny_prompt(), foveate.RRQR(), keep=7)
    with pytest.raises(TypeError, match="use_cache"):
        tiny.generate(**pruned, use_cache=False)
