"""The evaluation runner: the shape of its results, determinism, resuming, intervals."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from foveate import bench
from foveate.bench import evaluation
from foveate.bench.evaluation import Evaluation
from foveate.bench.statistics import relative, relative_interval, wilson
from foveate.cli import app
from foveate.errors import InvalidInputs, InvalidOption
from foveate.mini.exam import exam
from foveate.mini.questions import SKILLS
from foveate.mini.scenes import draw

QUESTIONS = len(SKILLS) + 1  # one question of every skill, and two of the first


@pytest.fixture(autouse=True)
def _load_once(bundled, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "load", lambda path="mini": bundled)
    monkeypatch.chdir(tmp_path)


def outcome(name, right, skills=None):
    return Evaluation(name, name, 64, 64, skills or ["a"] * len(right), list(map(bool, right)), 1.0, {})


def run_json(*arguments):
    result = CliRunner().invoke(app, ["eval", "--questions", str(QUESTIONS), *arguments, "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_json_has_the_promised_shape():
    data = run_json("--methods", "none,spare", "--keep", "64,16", "--seed", "3")
    assert [(row["method"], row["keep"]) for row in data["results"]] == [
        ("none", 576),
        ("spare", 64),
        ("spare", 16),
    ]
    assert data["seed"] == 3
    assert data["questions"] == QUESTIONS
    assert data["model"] == "mini"
    assert set(data["versions"]) == {"python", "torch", "transformers", "foveate"}
    for row in data["results"]:
        assert row["n"] == QUESTIONS
        assert set(row["skills"]) == set(SKILLS) == set(row["skill_intervals"])
        assert row["interval"][0] <= row["overall"] <= row["interval"][1]
        assert row["tokens"] == row["keep"]
        assert "relative" in row
        assert "relative_interval" in row


def test_all_tokens_are_always_measured_but_only_shown_when_asked():
    data = run_json("--methods", "random", "--keep", "8", "--questions", "1")
    assert [row["method"] for row in data["results"]] == ["random"]
    assert data["results"][0]["n"] == 1


def test_the_same_seed_gives_the_same_results(bundled):
    arms = bench.parse_arms("spare,random", "32")

    def answers(seed):
        return [replace(done, seconds=0) for done in bench.evaluate(*bundled, arms, questions=3, seed=seed)]

    assert answers(1) == answers(1)
    assert answers(1)[0].settings != answers(2)[0].settings


def test_right_answers_are_counted(bundled, monkeypatch):
    model, processor = bundled
    monkeypatch.setattr(evaluation, "correct", lambda answer, question: question.skill == SKILLS[0])
    (done,) = bench.evaluate(model, processor, [bench.all_tokens()], questions=QUESTIONS, seed=0)
    assert done.skills == [*SKILLS, SKILLS[0]]
    assert done.right == [True, *[False] * (QUESTIONS - 2), True]


def test_each_question_gets_the_answer_it_gets_alone(bundled, monkeypatch):
    model, processor = bundled
    heard = []
    monkeypatch.setattr(evaluation, "correct", lambda answer, question: heard.append((question, answer)))
    list(bench.evaluate(model, processor, [bench.all_tokens()], questions=4, seed=0))
    for (scene, question), (asked, answer) in zip(exam(4, 0), heard, strict=True):
        assert question == asked
        inputs = bench.requests(processor, [draw(scene)], [question.text])
        output = model.generate(**inputs, max_new_tokens=evaluation.ANSWER_TOKENS, do_sample=False)
        new = output[0, inputs["input_ids"].shape[1] :]
        assert answer == processor.decode(new, skip_special_tokens=True)


def test_a_stored_arm_is_not_run_again(bundled, monkeypatch):
    store = Path("results.jsonl")
    arms = bench.parse_arms("none,rrqr", "32,16")
    settings = {"questions": 3, "seed": 0, "store": store}
    first = list(bench.evaluate(*bundled, arms[:2], **settings))
    assert len(store.read_text().splitlines()) == 2

    ran, run = [], evaluation._run
    run = bench.evaluate.__globals__["_run"]
    monkeypatch.setitem(bench.evaluate.__globals__, "_run", lambda *all: ran.append(all[2].label) or run(*all))
    again = list(bench.evaluate(*bundled, arms, **settings))
    assert again[:2] == first
    assert ran == ["RRQR 16"]
    assert len(store.read_text().splitlines()) == 3
    list(bench.evaluate(*bundled, arms[:1], **{**settings, "seed": 1}))
    assert ran[1:] == ["all tokens"]


def test_an_interrupted_run_keeps_the_arms_that_were_done(bundled):
    store = Path("results.jsonl")
    arms = bench.parse_arms("none,rrqr", "16")
    running = bench.evaluate(*bundled, arms, questions=2, seed=0, store=store)
    next(running)
    running.close()
    assert [json.loads(line)["name"] for line in store.read_text().splitlines()] == ["none"]


def test_a_store_that_cannot_be_written_is_one_clear_error(bundled):
    with pytest.raises(InvalidInputs, match="cannot be written"):
        bench.evaluate(*bundled, [bench.all_tokens()], questions=1, seed=0, store=Path("no/such/r.jsonl"))


@pytest.mark.parametrize(("questions", "seed"), [(0, 0), (-1, 0), (1, -1)])
def test_impossible_settings_are_refused(bundled, questions, seed):
    with pytest.raises(InvalidOption):
        bench.evaluate(*bundled, [bench.all_tokens()], questions=questions, seed=seed)


def test_progress_adds_up(bundled):
    seen = []
    arms = bench.parse_arms("random", "8,4")
    list(
        bench.evaluate(
            *bundled, arms, questions=17, seed=0, progress=lambda arm, answered: seen.append((arm.label, answered))
        )
    )
    assert seen == [("Random 8", 16), ("Random 8", 1), ("Random 4", 16), ("Random 4", 1)]


def test_wilson_agrees_with_published_values():
    # Newcombe 1998, Table I: 81 of 263 and 15 of 148, without continuity correction.
    assert wilson(np.array([1.0] * 81 + [0.0] * 182)) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(np.array([1.0] * 15 + [0.0] * 133)) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(np.zeros(20))[0] == 0
    assert wilson(np.ones(20))[1] == 1


def test_the_relative_interval_is_paired():
    base = np.array([1.0, 0.0] * 50)
    assert relative_interval(base, base) == (1.0, 1.0)  # unpaired resampling would spread here
    worse = base.copy()
    worse[:20] = 0
    low, high = relative_interval(worse, base)
    assert low < relative(worse, base) == 0.8 < high
    assert relative(worse, np.zeros(100)) is None
    assert relative_interval(worse, np.zeros(100)) is None


def test_relative_is_to_all_tokens_per_skill():
    skills = ["a", "b"] * 4
    base = outcome("none", [1, 1, 1, 1, 1, 0, 1, 0], skills)
    half = outcome("spare", [1, 1, 1, 0, 0, 0, 0, 0], skills)
    row = bench.as_results([half], base)[0]
    assert row["overall"] == 3 / 8
    assert row["relative"] == 0.5
    assert row["skills"] == {"a": 0.5, "b": 0.25}
    assert row["skill_relative"] == {"a": 0.5, "b": 0.5}


def test_markdown_has_two_well_formed_tables():
    base = outcome("none", [1, 0, 1, 1])
    text = bench.as_markdown(bench.as_results([base, outcome("spare", [0, 0, 1, 1])], base), "40 cores")
    assert text.startswith("40 cores\n\n")
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert [len(table) for table in tables] == [4, 4]
    assert len({line.count("|") for table in tables for line in table}) == 1
    assert "| spare | 64 | 50.0 (15–85) | 50.0 (15–85) |" in tables[0]
    assert tables[1][2].startswith("| none | 64 | 100.0 (100–100)")


def test_markdown_from_the_command_names_the_machine_first():
    arguments = ["eval", "--questions", "2", "--methods", "none,random", "--keep", "8", "--markdown"]
    result = CliRunner().invoke(app, arguments)
    first = result.stdout.splitlines()[0]
    assert result.exit_code == 0
    assert first.startswith("2 questions on fresh scenes (seed 0) on ")
    assert "torch" in first


def test_none_appears_once_whatever_the_budgets():
    arms = bench.parse_arms("none,none,rrqr,rrqr", "64,32,64")
    assert [arm.label for arm in arms] == ["all tokens", "RRQR 64", "RRQR 32"]
