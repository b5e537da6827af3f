"""examples/compiled_prefill.py: the compiled decoder gives what the stock one gives, for the prompt alone."""

import importlib.util
from pathlib import Path

import pytest
import torch

import foveate
from conftest import COMPILES, tiny_llava, tiny_prompt

pytestmark = COMPILES

EXAMPLE = Path(__file__).parent.parent / "examples" / "compiled_prefill.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("compiled_prefill", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def generated(model, pruned):
    return model.generate(
        **pruned, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
    )


def test_the_answer_and_the_logits_are_those_of_the_stock_decoder(example):
    model, inputs = tiny_llava(), tiny_prompt((1,), text=(7, 7, 7))
    calls = []

    def backend(graph, example_inputs):
        calls.append(graph)
        return graph.forward

    prompts = [foveate.prune(model, inputs, foveate.UniformGrid(), keep=keep) for keep in (8, 8, 4)]
    stock = [generated(model, pruned) for pruned in prompts]
    stock_forward, graphs = model.get_decoder().forward, []
    torch._dynamo.reset()
    with example.compiled_prefill(model, backend):
        for pruned, expected in zip(prompts, stock, strict=True):
            found = generated(model, pruned)
            graphs.append(len(calls))
            assert torch.equal(found.sequences, expected.sequences)
            for a, b in zip(found.logits, expected.logits, strict=True):
                torch.testing.assert_close(a, b)
    # One length is compiled once, another one again; and nothing is left of it.
    assert 0 < graphs[0] == graphs[1] < graphs[2]
    assert model.get_decoder().forward == stock_forward


def test_control_a_backend_that_computes_something_else_gives_other_logits(example):
    model, inputs = tiny_llava(), tiny_prompt((1,), text=(7, 7, 7))
    pruned = foveate.prune(model, inputs, foveate.UniformGrid(), keep=8)
    expected = generated(model, pruned)

    def wrong(graph, example_inputs):
        for node in graph.graph.nodes:
            if node.target is torch.nn.functional.silu:
                node.target = torch.nn.functional.relu
        graph.recompile()
        return graph.forward

    torch._dynamo.reset()
    with example.compiled_prefill(model, wrong):
        found = generated(model, pruned)
    assert not torch.allclose(found.logits[0], expected.logits[0], atol=1e-4)
