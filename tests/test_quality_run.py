"""The runner: what it records, resuming, and what it refuses."""

import json
from dataclasses import asdict

import pytest
import torch
from transformers import CLIPModel

from foveate import bench, mini
from foveate.bench.arm import Arm, parse_arms
from foveate.bench.quality import running
from foveate.bench.quality.benchmark import Benchmark
from foveate.bench.quality.energy import energy_path
from foveate.bench.quality.items import mini_items
from foveate.bench.quality.running import ANSWER_TOKENS, run, settler
from foveate.bench.quality.store import FILE, Batch, Store
from foveate.errors import InvalidBudget, InvalidInputs
from foveate.methods import SPARE
from foveate.mini.exam import exam
from foveate.mini.scenes import draw
from foveate.prune import prune
from foveate.select import residual_energy

SETTINGS = {"split": "test"}


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    monkeypatch.setattr(running, "BATCH", 2)


def arms_for(bundled, methods, keep):
    return [settler(*bundled, None)(arm) for arm in parse_arms(methods, keep)]


def answered(bundled, arms, n, folder=None, **more):
    store = Store.open(folder, SETTINGS)
    run(*bundled, arms, mini_items(n, "test"), store, **more)
    return store


def without_seconds(batches):
    return [{**asdict(batch), "seconds": 0} for batch in batches]


def test_each_question_is_answered_as_it_is_alone(bundled):
    model, processor = bundled
    (arm,) = arms_for(bundled, "spare", "48")
    (first, second) = answered(bundled, [arm], 3).batches
    assert (first.key, first.tokens, second.questions) == (arm.key, [48, 48], ["test-2"])
    answers, energies = first.answers + second.answers, first.energy + second.energy
    for (scene, question), answer, energy in zip(exam(3, 1, "test"), answers, energies, strict=True):
        inputs = bench.requests(processor, [draw(scene)], [question.text])
        pruned = prune(model, inputs, SPARE(), keep=48, processor=processor)
        output = model.generate(**pruned, max_new_tokens=ANSWER_TOKENS, do_sample=False)
        new = output[0, pruned["input_ids"].shape[1] :]
        assert answer == processor.decode(new, skip_special_tokens=True).strip()
        assert energy == pytest.approx(pruned.report.residual_energy[0], abs=1e-8)


def test_questions_of_a_skill_are_answered_together_and_each_once():
    items = mini_items(40, "test")
    cut = list(running.batches(items))  # of 2, in blocks of 16
    assert [len({item.skill for item in batch}) for batch in cut[:8]] == [1] * 8
    assert sorted(item.id for batch in cut for item in batch) == sorted(item.id for item in items)
    assert {item.id for batch in cut[:8] for item in batch} == {item.id for item in items[:16]}


def test_minis_longest_workings_are_not_cut(bundled):
    _, processor = bundled
    spoken = [f" {question.spoken}" for _, question in exam(800, 0, "test")]
    lengths = [len(ids) + 1 for ids in processor.tokenizer(spoken, add_special_tokens=False)["input_ids"]]
    assert max(lengths) <= ANSWER_TOKENS  # with the end of the answer


def test_records_say_what_was_right(bundled, monkeypatch):
    found = mini_items(3, "test")
    for number, item in enumerate(found):
        object.__setattr__(item, "right", lambda answer, number=number: number == 1)
    store = Store()
    run(*bundled, arms_for(bundled, "none", "8"), found, store)
    assert [batch.right for batch in store.batches] == [[False, True], [False]]
    assert [skill for batch in store.batches for skill in batch.skills] == [item.skill for item in found]
    assert store.batches[0].tokens == [576, 576]
    assert store.batches[0].energy == [0, 0]


@pytest.mark.parametrize("spec", ["pool", "downsample"])
def test_tokens_that_are_no_rows_of_the_features_have_an_energy_too(bundled, spec):
    (arm,) = arms_for(bundled, spec, "16")
    (batch,) = answered(bundled, [arm], 1).batches
    assert batch.tokens == [16]
    assert 0 < batch.energy[0] < 1


def test_the_file_grows_batch_by_batch_and_a_stopped_run_goes_on(bundled, tmp_path):
    arms = arms_for(bundled, "none,rrqr,uniform", "16,8")
    whole = answered(bundled, arms, 5).batches
    order = [(batch.key, batch.questions) for batch in whole]
    assert order[: len(arms)] == [(arm.key, ["test-0", "test-1"]) for arm in arms]

    def stop(label, answers):
        if len(store.batches) == 7:  # in the middle of the second batch of questions
            raise KeyboardInterrupt

    store = Store.open(tmp_path, SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        run(*bundled, arms, mini_items(5, "test"), store, progress=stop)
    path = tmp_path / FILE
    assert len(path.read_text().splitlines()) == 1 + 7
    path.write_text(path.read_text() + '{"method": "RRQR()", "posi')  # as a power cut leaves it

    told = []
    again = answered(bundled, arms, 5, tmp_path, progress=lambda label, answers: told.append((label, answers)))
    assert without_seconds(again.batches) == without_seconds(whole)
    assert len(path.read_text().splitlines()) == 1 + len(whole)
    assert told[:3] == [("stored", 10), ("stored", 4), (arms[2].label, 2)]
    assert sum(answers for _, answers in told) == 5 * len(arms)


def test_budgets_that_come_to_the_same_counts_run_once(bundled, monkeypatch):
    model, _ = bundled
    calls = []
    generate = type(model).generate
    monkeypatch.setattr(type(model), "generate", lambda *a, **k: calls.append(1) or generate(*a, **k))
    batches = answered(bundled, arms_for(bundled, "rrqr,uniform", "16,0.0278,8"), 1).batches
    found = {batch.keep: batch for batch in batches if batch.method.startswith("RRQR")}
    assert {keep: batch.tokens for keep, batch in found.items()} == {16: [16], 8: [8], 0.0278: [16]}
    assert found[16].answers == found[0.0278].answers
    assert len(calls) == 4


def test_a_finished_run_runs_nothing(bundled, tmp_path, monkeypatch):
    arms = arms_for(bundled, "rrqr", "8")
    first = answered(bundled, arms, 2, tmp_path)
    monkeypatch.setattr(running, "prepare", None)
    assert answered(bundled, arms, 2, tmp_path).batches == first.batches


def test_more_questions_are_added_to_those_that_are_there(bundled, tmp_path):
    arms = arms_for(bundled, "rrqr", "8")
    answered(bundled, arms, 2, tmp_path)
    assert [batch.questions for batch in answered(bundled, arms, 3, tmp_path).batches] == [
        ["test-0", "test-1"],
        ["test-2"],
    ]


def test_what_is_answered_is_not_answered_again(bundled, tmp_path):
    """Though questions are put in order by skill, and eight skills are in turn."""
    arms = arms_for(bundled, "rrqr,norm", "8")
    answered(bundled, arms, 9, tmp_path)
    batches = answered(bundled, arms, 13, tmp_path).batches
    for arm in arms:
        asked = [question for batch in batches if batch.key == arm.key for question in batch.questions]
        assert sorted(asked) == sorted(f"test-{index}" for index in range(13))


def test_splits_and_models_are_never_mixed(bundled, tmp_path):
    answered(bundled, arms_for(bundled, "rrqr", "8"), 1, tmp_path)
    with pytest.raises(InvalidInputs, match="made with split 'test', not 'dev'"):
        Store.open(tmp_path, {"split": "dev"})
    options = {"suite": "text-only", "methods": None, "keep": "8", "questions": 1}
    test, dev = (Benchmark.make(**options, split=split) for split in ("test", "dev"))
    folder = tmp_path / "real"
    test.store(bundled[0], folder)
    test.store(bundled[0], folder)
    with pytest.raises(InvalidInputs, match="made with data 'test scenes of mini', not 'dev scenes of mini'"):
        dev.store(bundled[0], folder)
    assert json.loads((folder / FILE).read_text())["split"] == "test"
    other = CLIPModel.from_pretrained(mini.PATH / "clip", dtype=torch.float32)
    with torch.no_grad():
        other.visual_projection.weight.neg_()
    with pytest.raises(InvalidInputs, match="made with clip"):
        test.store(bundled[0], folder, other)


def test_a_count_that_cannot_be_reached_is_known_before_other_arms_run(bundled):
    store = Store.open(None, SETTINGS)
    with pytest.raises(InvalidBudget, match=r"10.*9 visual tokens"):
        run(*bundled, arms_for(bundled, "rrqr,downsample", "10"), mini_items(2, "test"), store)
    assert store.batches == []


def test_results_that_an_editor_saved_with_a_byte_order_mark_go_on(bundled, tmp_path):
    answered(bundled, arms_for(bundled, "rrqr", "8"), 1, tmp_path)
    path = tmp_path / FILE
    known = len(Store.open(tmp_path, SETTINGS).batches)
    path.write_bytes(path.read_bytes().decode().encode("utf-8-sig") + b'{"cut')
    assert len(Store.open(tmp_path, SETTINGS).batches) == known > 0
    assert path.read_text(encoding="utf-8-sig").endswith("}\n")


@pytest.mark.parametrize("text", ["[1]\n", "oops\n", '{"split": "test"}\n{"a": 1}\n', '{"other": 1}\n'])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(InvalidInputs, match=r"not a file of earlier results|line 2: not a result"):
        Store.open(tmp_path, SETTINGS)
    assert (tmp_path / FILE).read_text() == text


def test_another_number_of_tokens_is_an_error(bundled):
    # 67 is prime: the down-sampled image has fewer tokens.
    with pytest.raises(
        InvalidBudget, match=r"\d+ visual tokens went to the language model, asked for were 67 of 576"
    ):
        answered(bundled, arms_for(bundled, "downsample", "67"), 1)


def test_positions_reach_the_model(bundled):
    (original,) = arms_for(bundled, "uniform", "16")
    compact = Arm(original.name, original.method, original.budget, "compact")
    assert compact.label == "UniformGrid (compact) 16"
    one, other = answered(bundled, [original, compact], 1).batches
    assert (one.positions, other.positions) == ("original", "compact")
    assert one.energy == other.energy


def test_later_answers_of_the_same_arm_do_not_hide_those_of_others():
    store = Store()
    for keep, ids in ((8, ["a", "b"]), (8, ["c"]), (16, ["a"])):
        n = len(ids)
        store.add(Batch("RRQR()", "original", keep, [8] * n, ids, ["s"] * n, [True] * n, [0.0] * n, [""] * n, 1.0))
    assert store.done() == {("RRQR()", "original", 8): {"a", "b", "c"}, ("RRQR()", "original", 16): {"a"}}


@pytest.mark.parametrize("duplicates", [False, True])
def test_the_fast_energy_is_the_exact_one(duplicates):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 24, generator=generator) * torch.rand(60, 1, generator=generator)
    order = torch.randperm(60, generator=generator)[:40]
    if duplicates:
        features[order[3]] = features[order[1]] * 2
        features[order[5]] = 0
    assert energy_path(features, order) == pytest.approx(residual_energy(features, order).tolist(), abs=1e-8)
