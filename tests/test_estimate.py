"""Estimates: operations against torch's own count, stages against what was measured, and the command."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from foveate.bench.estimate import Case, Sizes, cost, gpu, report
from foveate.bench.estimate import measure as measuring
from foveate.bench.estimate.gpus import GPUS
from foveate.bench.speed.presets import PRESETS, build
from foveate.cli import app
from foveate.errors import InvalidOption
from zoo import ZOO

ROOT = Path(__file__).parent.parent
META = torch.device("meta")
TIMES = ("tower", "prefill", "decode")


@pytest.fixture(scope="module")
def page():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        yield importlib.import_module("estimate_page")


# --- formulas ---


@pytest.mark.parametrize("preset", ["llava-0.5b", "llava-1.5-7b"])
def test_operations_are_those_that_torch_counts(preset):
    model, sizes = build(PRESETS[preset], META, torch.bfloat16, "eager"), Sizes.of(preset)
    one = replace(gpu("H200"), flops=1.0)  # seconds are operations
    case = Case(2, 576, 64)
    with FlopCounterMode(display=False) as towers, torch.no_grad():
        model.get_image_features(pixel_values=torch.empty(2, 3, 336, 336, device=META, dtype=torch.bfloat16))
    assert cost.tower(sizes, one, case).arithmetic == pytest.approx(towers.get_total_flops(), rel=0.01)
    with FlopCounterMode(display=False) as decoder, torch.no_grad():
        entering = torch.empty(2, case.width, model.config.get_text_config().hidden_size, device=META)
        model.get_decoder()(inputs_embeds=entering.bfloat16(), use_cache=True)
    # Eager attention computes what a causal mask hides, and the head is not part of the decoder.
    hidden = 2 * 2 * case.width**2 * sizes.attention * sizes.layers
    expected = decoder.get_total_flops() - hidden + 2 * 2 * sizes.head
    assert cost.prefill(sizes, one, case).arithmetic == pytest.approx(expected, rel=0.01)


@given(
    batch=st.integers(1, 64),
    tokens=st.sampled_from([64, 576, 2928]),
    kept=st.integers(1, 64),
    name=st.sampled_from(list(GPUS)),
)
def test_more_work_never_takes_less_and_a_stage_no_less_than_any_of_its_costs(batch, tokens, kept, name):
    sizes, device, case = LLAVA, gpu(name), Case(batch, tokens, kept)
    found = cost.stages(sizes, device, case)
    for larger in (replace(case, batch=batch + 1), replace(case, tokens=2 * tokens), replace(case, text=99)):
        more = cost.stages(sizes, device, larger)
        assert all(more[stage].seconds >= found[stage].seconds for stage in TIMES)
    for stage in found.values():
        assert stage.seconds >= max(stage.arithmetic, stage.bandwidth, stage.launches)
        assert getattr(stage, stage.bound) == max(stage.arithmetic, stage.bandwidth, stage.launches) or stage.ahead
    assert cost.cached(sizes, case) <= cost.cached(sizes, replace(case, kept=tokens))


LLAVA = Sizes.of("llava-1.5-7b")


def test_on_a_cpu_costs_add_up_and_on_a_gpu_the_host_runs_ahead():
    parts = (
        cost.Stage(3.0, 2.0, 4.0, ahead=False),
        cost.Stage(3.0, 2.0, 4.0, ahead=True),
        cost.Stage(3, 2, 6, True),
    )
    assert [stage.seconds for stage in parts] == [9, 5, 6]
    assert [stage.bound for stage in parts] == ["launches", "arithmetic", "launches"]


# --- what was measured ---


def test_every_stage_is_within_a_third_of_what_was_measured(page):
    for row, pairs in page.compared():
        for stage in (*TIMES, "cache"):
            assert page.within_a_third(*pairs[stage]), (
                row["model"],
                row["arm"],
                row["batch"],
                stage,
                pairs[stage],
            )


@pytest.mark.parametrize("wrong", [{"flops": 1.0e14}, {"layer": 4e-4}, {"ahead": False}])
def test_control_a_device_of_other_figures_is_not(page, wrong, monkeypatch):
    monkeypatch.setattr(page, "gpu", lambda name: replace(gpu(name), **wrong))
    assert not all(page.within_a_third(*pairs[stage]) for _, pairs in page.compared() for stage in TIMES)


def test_the_page_is_what_its_command_writes(page):
    text = (ROOT / "docs" / "estimate.md").read_text(encoding="utf-8")
    for written in (page.gpus_table(), page.constants(), page.check()):
        assert written in text


def test_where_it_pays_is_where_it_was_measured_to_pay():
    """On the H200: not at 576 tokens and batch 1, but with 2928 tokens, and from batch 8 on."""
    h200, few = gpu("H200"), Case(1, 576, 64)
    assert cost.sooner(LLAVA, h200, few) < 1
    assert 1 < cost.pays_from_batch(LLAVA, h200, few) <= 8
    assert 576 < cost.pays_from_tokens(LLAVA, h200, few) <= 2928
    assert cost.pays_from_batch(LLAVA, gpu("RTX 4090"), few) == 1
    slow_tower = replace(LLAVA, tower_layers=10_000_000)
    assert cost.pays_from_batch(slow_tower, h200, few) is None


@pytest.mark.parametrize(
    ("name", "batch", "words"),
    [
        ("H200", 1, "saves memory alone (KV cache 328 MiB -> 71.5 MiB"),
        ("H200", 16, "x as soon (the pruned prefill is bound by arithmetic)"),
        ("RTX 4090", 1, "from batch 1 on"),
    ],
)
def test_the_sentence_says_what_bounds_and_from_where_on_it_pays(name, batch, words):
    found = report.estimate("llava-1.5-7b", LLAVA, gpu(name), Case(batch, 576, 64))
    assert words in found["verdict"]
    assert found["verdict"].count(".") == 1 + sum(
        part[0].isdigit() for part in found["verdict"].split(".")[1:] if part
    )


# --- models ---


@pytest.mark.parametrize("name", ZOO)
def test_a_folder_with_a_configuration_alone_is_enough(name, tmp_path):
    """Of every family; the weights counted are those of the model, and none is in two places."""
    model = ZOO[name].build()
    model.config.save_pretrained(tmp_path)
    sizes = Sizes.of(str(tmp_path))
    assert sizes.total == model.num_parameters()
    looked_up = model.get_input_embeddings().weight.numel()
    assert 0 < sizes.decoder + sizes.head + sizes.tower <= sizes.total
    assert sizes.decoder + sizes.tower >= 0.5 * (sizes.total - looked_up - sizes.head)
    assert sizes.merge == {
        "mistral3": 4,
        "internvl": 4,
        "idefics3": 4,
        "smolvlm": 9,
        "gemma3": 4,
        "gemma4": 4,
    }.get(name, 4 if name.startswith(("qwen", "glm4v")) else 1)
    assert set(cost.stages(sizes, gpu("L4"), Case(1, sizes.tokens, 1))) == {
        "tower",
        "choosing",
        "prefill",
        "decode",
    }


@pytest.mark.parametrize("name", ["rtx 4090", "NVIDIA GeForce RTX 4090", "rtx-4090", "RTX4090"])
def test_a_gpu_is_found_by_its_usual_names(name):
    assert gpu(name).name == "RTX 4090"


def test_every_gpu_has_one_name_and_a_source():
    assert len({gpu(name).name for name in GPUS}) == len(GPUS)
    assert all(
        sheet.source and 10 < sheet.tflops < 5000 and 100 < sheet.gb_per_s < 10_000 for sheet in GPUS.values()
    )
    with pytest.raises(InvalidOption, match=r"gpu 'RTX 4999': allowed are T4.*--measure"):
        gpu("RTX 4999")


# --- this machine ---


def test_this_machine_is_measured(monkeypatch):
    monkeypatch.setattr(measuring, "SECONDS", 0.0)
    monkeypatch.setattr(measuring, "ROWS", {"cpu": 32, "cuda": 32})
    monkeypatch.setattr(measuring, "READ", 2**22)
    found = measuring.measured()
    assert 1e8 < found.flops < 1e15
    assert 1e8 < found.bandwidth < 1e13
    assert 1e-6 <= found.layer < 1
    assert found.ahead == torch.cuda.is_available()


# --- the command ---


def command(*arguments):
    return CliRunner().invoke(app, ["estimate", *arguments])


def test_the_command_prints_a_table_and_one_sentence():
    result = command("--model", "llava-1.5-7b", "--gpu", "H200")
    assert result.exit_code == 0, result.output
    for words in ("vision tower", "prefill", "launches", "KV cache", "saves memory alone", "475 TFLOP/s"):
        assert words in result.stdout
    assert (
        "more than this device has"
        in command("--model", "llava-1.5-7b", "--gpu", "RTX 4080", "--batch", "8").stdout
    )


def test_the_command_prints_json_alone():
    result = command("--model", "mini", "--batch", "4", "--keep", "0.25", "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert (data["tokens"], data["kept"], data["batch"]) == (576, 144, 4)
    assert data["device"]["name"] == "RTX 4090"


BAD = {
    "no model": ((), "--model"),
    "no such model": (("--model", "./no/such"), "there is no such folder"),
    "gpu": (("--model", "mini", "--gpu", "abacus"), "allowed are T4"),
    "gpu and measure": (("--model", "mini", "--gpu", "T4", "--measure"), "one of the two"),
    "keep": (("--model", "mini", "--keep", "x"), "'x'"),
    "keep all": (("--model", "mini", "--keep", "600"), "keeps all 576"),
    "batch": (("--model", "mini", "--batch", "0"), "1 or more"),
    "tokens": (("--model", "mini", "--tokens", "-1"), "1 or more"),
    "text": (("--model", "mini", "--text", "0"), "1 or more"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(case):
    arguments, words = BAD[case]
    result = command(*arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert words in result.stderr


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"model_type": "llama"}, "model type 'llama'"),
        ({"model_type": "llava", "text_config": {"model_type": "mixtral"}}, "a mixture of experts"),
        ({"model_type": "llava", "text_config": {"model_type": "llama", "hidden_size": "wide"}}, "config.json"),
    ],
)
def test_a_configuration_that_is_not_estimated_is_refused(entries, words, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(entries))
    result = command("--model", str(tmp_path))
    assert result.exit_code == 2, (result.output, result.exception)
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
