"""From answers to the page: the correlations, the claims, the plots, and the command that makes them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from typer.testing import CliRunner

import foveate
from foveate import bench
from foveate.bench.arm import parse_budgets
from foveate.bench.quality.cells import listed, points
from foveate.bench.quality.correlation import correlate
from foveate.bench.quality.documents import write_documents
from foveate.bench.quality.items import Item
from foveate.bench.quality.measured import Measured
from foveate.bench.quality.plan import Plan
from foveate.bench.quality.sections import standing
from foveate.bench.quality.store import Batch, Store
from foveate.bench.quality.suites import CONTROLS, suites_of
from foveate.bench.quality.summary import summarise
from foveate.bench.statistics import resamples
from foveate.cli import app
from foveate.mini.exam import exam
from foveate.mini.scenes import draw

N = 160
SKILLS = ["location", "reading"]
CONTEXT = {"model": "m", "data": "d", "split": "test", "machine": "c", "versions": {"python": "3"}, "tagger": "t"}
METHODS = {"SPARE": 0.9, "ResPrune": 0.5, "RRQR": 0.6, "UniformGrid": 0.7}  # chance of a right answer
ASKED = ("spare", "resprune", "rrqr")  # and the other controls
EASE = np.random.default_rng(0).permutation(np.linspace(0, 1, N))


def measured(energy_of, suites="default", keep="64,16", right_of=None, n=N, sizes=None):
    """Made-up answers: by default a question is right where its ease exceeds the method's rate of failure."""
    sizes = [576] * n if sizes is None else sizes
    plan = Plan.make(suites_of(suites, ASKED if "default" in suites else ()), parse_budgets(keep), lambda arm: arm)
    items = [Item(str(i), "?", SKILLS[i % 2], None, None) for i in range(n)]
    store = Store()
    rng = np.random.default_rng(1)
    for arm in plan.arms:
        chance = 1.0 if arm.keeps_all else METHODS.get(type(arm.method).__name__, 0.4)
        right = (EASE + chance >= 1 if right_of is None else right_of(arm, rng))[:n]
        energy = [0.0] * n if arm.keeps_all else energy_of(arm, rng)[:n]
        kept = [arm.budget.count(size) for size in sizes]
        ids, skills = [item.id for item in items], [item.skill for item in items]
        store.add(Batch(*arm.key, kept, ids, skills, [bool(r) for r in right], list(energy), [""] * n, 1.0))
    return Measured.of(plan, items, store)


def chance_energy(arm, rng):
    """Better methods leave less, the same for all questions but for noise."""
    return 1 - METHODS.get(type(arm.method).__name__, 0.4) * 0.9 - rng.random(N) * 1e-3


@pytest.fixture(scope="module")
def data():
    return summarise(measured(chance_energy, "default,positions,text-only"), CONTEXT)


def row_of(data, label, keep=64, suite="default"):
    (row,) = [r for r in data["suites"][suite]["rows"] if (r["label"], r["keep"]) == (label, keep)]
    return row


def test_accuracies_and_differences_are_those_of_the_answers(data):
    spare = row_of(data, "spare")
    assert spare["accuracy"] == pytest.approx(0.9, abs=0.01)
    assert spare["relative"]["value"] == pytest.approx(0.9, abs=0.01)
    assert spare["relative"]["sign"] == spare["to_all"]["sign"] == -1
    assert spare["to_random"]["value"] == pytest.approx(0.5, abs=0.01)
    assert spare["to_random"]["sign"] == 1
    assert row_of(data, "pool")["to_random"]["sign"] == 0  # the same answers as random: no claim
    assert set(spare["skills"]) == set(SKILLS)
    assert data["everything"]["tokens"] == 576
    assert data["context"]["skills"] == {"location": N // 2, "reading": N // 2}


def test_methods_stand_against_every_control_at_every_budget(data):
    pairs = [(entry["of"], entry["to"], entry["keep"]) for entry in data["controls"]]
    assert pairs == [(of, to, keep) for of in ("spare", "resprune") for to in CONTROLS for keep in (64, 16)]
    signs = {(e["of"], e["to"]): e["sign"] for e in data["controls"]}
    assert signs["spare", "uniform"] == 1
    assert signs["resprune", "uniform"] == signs["resprune", "rrqr"] == -1


def test_random_is_the_mean_of_its_seeds():
    shares = iter(np.linspace(0.2, 0.6, 100))
    seeds = {}

    def right_of(arm, rng):
        if type(arm.method).__name__ == "Random":
            seeds[arm.key] = EASE - next(shares) < 0
            return seeds[arm.key]
        return EASE < 0.5

    data = summarise(measured(chance_energy, "text-only", "16", right_of), CONTEXT)
    (random,) = data["random"]
    assert len(random["seeds"]) == 5
    assert random["accuracy"] == pytest.approx(np.mean(list(seeds.values())), abs=1e-4)
    difference = np.mean([0.5 - right.mean() for right in seeds.values()])
    assert row_of(data, "ResPrune", 16, "text-only")["to_random"]["value"] == pytest.approx(difference, abs=1e-3)


def test_detail_is_what_the_down_sampled_image_gets_wrong(data):
    entries = [entry for entry in data["detail"] if entry["keep"] == 64]
    assert {entry["label"] for entry in entries if entry["group"] == "rest"} == {
        "none", "spare", "resprune", "rrqr", "random", "uniform", "pool", "norm", "relevance"
    }  # fmt: skip
    sizes = {entry["group"]: entry["n"] for entry in entries}
    assert sizes == {"detail": 96, "rest": 64}
    spare = {entry["group"]: entry["accuracy"] for entry in entries if entry["label"] == "spare"}
    assert spare == {"detail": pytest.approx(80 / 96, abs=1e-4), "rest": 1.0}


def test_energy_that_follows_the_method_correlates_across_methods_and_within_questions():
    found = correlate(made := measured(chance_energy), made.plan.suites["default"], resamples(N))
    assert found.across_methods[64].value == pytest.approx(1, abs=0.2)
    assert found.within_question[64].low > 0.3
    assert abs(found.per_question[("spare", 64)].value) < 0.2
    assert found.per_question_pooled[64].low < 0 < found.per_question_pooled[64].high
    assert abs(found.beyond_method[64].value) < 0.15


def test_beyond_the_method_is_the_correlation_of_doubly_centred_ranks():
    made = measured(lambda arm, rng: rng.random(N), right_of=lambda arm, rng: rng.random(N) < 0.5)
    suite, budget = made.plan.suites["default"], made.plan.budgets[0]
    rows = [made.row(variant, budget) for variant in suite.variants]
    x = np.apply_along_axis(stats.rankdata, 1, np.stack([row.kept for row in rows], axis=1))
    y = np.stack([row.right for row in rows], axis=1)
    x, y = ((v - v.mean(1, keepdims=True)) - (v - v.mean(1, keepdims=True)).mean(0) for v in (x, y))
    found = correlate(made, suite, resamples(N)).beyond_method[budget.keep]
    assert found.value == pytest.approx((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))
    assert found.low < found.value < found.high


def test_an_image_that_a_method_spans_unusually_well_counts_beyond_the_method():
    luck = {}

    def energy_of(arm, rng):
        return 1 - luck.setdefault(arm.key, rng.random(N))

    def right_of(arm, rng):
        return luck.setdefault(arm.key, rng.random(N)) > 0.5

    made = measured(energy_of, right_of=right_of)
    assert correlate(made, made.plan.suites["default"], resamples(N)).beyond_method[None].low > 0.4


def test_energy_that_follows_the_question_alone_is_not_taken_for_a_methods_merit():
    made = measured(lambda arm, rng: 1 - EASE + rng.random(N) * 1e-6)
    found = correlate(made, made.plan.suites["default"], resamples(N))
    x = stats.rankdata(np.round(1 - (1 - EASE), 9))
    spare = made.row(made.plan.suites["default"].variants[0], made.plan.budgets[0])
    assert found.per_question[("spare", 64)].value == pytest.approx(
        stats.spearmanr(x, spare.right).statistic, abs=0.01
    )
    assert found.per_question_pooled[None].low > 0.5
    assert abs(found.within_question[None].value) < 0.1
    assert abs(found.beyond_method[None].value) < 0.1


def test_energy_that_is_the_same_for_all_has_no_correlation():
    made = measured(lambda arm, rng: np.zeros(N))
    found = correlate(made, made.plan.suites["default"], resamples(N))
    assert set(found.across_methods.values()) == set(found.within_question.values()) == {None}
    assert "undefined at 64 and 16 tokens" in page(summarise(made, CONTEXT))


def page(data):
    from foveate.bench.quality.markdown import as_markdown

    return as_markdown(data, "foveate bench quality", {"accuracy": "a.png", "skills": "s.png", "energy": "e.png"})


def test_the_page_is_well_formed_and_says_what_the_intervals_allow(data):
    text = page(data)
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert "**spare** loses to no control for certain" in text
    assert "**resprune** loses to a control at 64 (uniform and rrqr); at 16 (uniform and rrqr)" in text
    assert "- **64 tokens.** Ahead of random: spare, resprune, rrqr and uniform. Behind it: none." in text
    assert "Not told apart from it: pool, downsample, norm and relevance." in text
    assert "Difference in points (location alone)" in text
    assert "## Suite `text-only`" in text
    assert "LLaVA-7B" in text


def test_bold_and_words_need_an_interval_without_zero(data):
    entries = [d for s in data["suites"].values() for d in s["differences"]] + data["controls"]
    for entry in entries:
        low, high = entry["interval"]
        assert points(entry).startswith("**") == (low > 0 or high < 0)
    told = standing([{"keep": 64, "sign": 1}, {"keep": 32, "sign": 0}, {"keep": 16, "sign": 1}])
    assert told == "ahead at 64 and 16; not told apart at 32"
    assert listed([]) == "none"


def test_without_the_default_suite_there_are_no_plots(tmp_path):
    path = write_documents(summarise(measured(chance_energy, "alpha"), CONTEXT), tmp_path, "c")
    assert "## Suite `alpha`" in path.read_text()
    assert not list(tmp_path.glob("*.png"))


def intervals(data):
    """Every interval of a summary with its place, and whether it is that of a share of right answers alone."""
    if isinstance(data, dict):
        if "interval" in data:
            yield data["interval"], "accuracy" in data
        for value in data.values():
            yield from intervals(value)
    for value in data if isinstance(data, list) else ():
        yield from intervals(value)


@pytest.mark.parametrize("right", [0.0, 1.0, None])
@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_an_interval_is_printed_where_one_can_be_had(tmp_path, n, right):
    right_of = None if right is None else lambda arm, rng: np.full(N, right)
    data = summarise(measured(chance_energy, "default,sign-space", right_of=right_of, n=n), CONTEXT)
    for interval, of_accuracy in intervals(data):
        assert interval is None or n > 1 or of_accuracy  # Wilson's takes one question
        assert interval is None or not of_accuracy or interval[0] < interval[1]
    if n == 1:
        differences = [d for suite in data["suites"].values() for d in suite["differences"]] + data["controls"]
        assert {(d["interval"], d["sign"]) for d in differences} == {(None, 0)}
        assert {row["interval"] for row in data["random"]} == {None}
    path = write_documents(data, tmp_path, "c")
    text = path.read_text() + "".join(cell for table in bench.quality_tables(data) for cell in written(table))
    assert "(100–100)" not in text
    assert "(0–0)" not in text
    assert "nan" not in text
    assert "inf" not in text.replace("information", "")


def written(table):
    return [cell for column in table.columns for cell in column.cells] + [str(c.header) for c in table.columns]


@pytest.mark.parametrize(
    ("keep", "sizes", "columns"),
    [
        ("64,9999", [576] * N, [576, 64]),
        ("0.5,288", [576] * N, [288]),
        ("9999,576,0.5,288,64,64", [576] * N, [576, 288, 64]),
        ("0.11", [576] * N, [63]),
        ("9999,64", [100, 300] * (N // 2), [200, 64]),
        ("0.5,9999", [101, 300] * (N // 2), [200.5, 100.5]),
        ("0.5,100", [100, 300] * (N // 2), [100, 0.5]),  # the same mean of other counts: as asked
    ],
)
def test_what_was_kept_heads_the_columns_and_equal_budgets_are_there_once(keep, sizes, columns):
    data = summarise(measured(chance_energy, keep=keep, sizes=sizes), CONTEXT)
    assert sorted(data["budgets"], reverse=True) == sorted(columns, reverse=True)
    assert set(data["asked"]) == {budget.keep for budget in parse_budgets(keep)}
    (table,) = bench.quality_tables(data)
    assert [column.header for column in table.columns][1:] == [str(keep) for keep in data["budgets"]]
    assert {row["keep"] for row in data["suites"]["default"]["rows"]} == set(data["budgets"])
    assert page(data)


def run(*arguments):
    return CliRunner().invoke(app, ["bench", "quality", *arguments], prog_name="foveate")


@pytest.fixture
def _load_once(bundled, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "load", lambda path="mini": bundled)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_load_once")
def test_the_command_runs_resumes_and_writes_the_page():
    Path("docs").mkdir()
    options = ("--keep", "32,16", "--questions", "8", "--out", "out", "--split", "dev")
    first = run(*options, "--json")
    assert first.exit_code == 0, first.stderr
    data = json.loads(first.stdout)
    assert data["context"]["split"] == "dev"
    assert data == json.loads(Path("out/summary.json").read_text())
    lines = Path("out/results.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 1 + 2 * (len(foveate.METHODS) - 1 + 5)  # of random, five seeds

    again = run(*options, "--docs", "docs")
    assert again.exit_code == 0, again.stderr
    assert Path("out/results.jsonl").read_text().splitlines() == lines
    assert "8 questions (dev scenes of mini)" in again.stdout
    text = Path("docs/quality.md").read_text()
    command = "foveate bench quality --keep 32,16 --questions 8 --split dev --out out --docs docs"
    assert f"Written by `{command}`" in text
    for name in re.findall(r"\]\((.+\.png)\)", text):
        assert Image.open(Path("docs") / name).width > 1000

    mixed = run("--keep", "16", "--questions", "8", "--out", "out")
    assert mixed.exit_code == 2
    assert mixed.stderr.splitlines() == [
        "foveate: results 'out/results.jsonl': made with data 'dev scenes of mini', not 'test scenes of mini'; "
        "results of both are not mixed: give another --out"
    ]


@pytest.mark.usefixtures("_load_once")
def test_a_users_own_questions_run_the_same_benchmark():
    for number, (scene, question) in enumerate(exam(6, 5)):
        draw(scene).save(f"{number}.png")
        line = {"image": f"{number}.png", "question": question.text, "answers": [question.answer]}
        with Path("mine.jsonl").open("a") as file:
            file.write(json.dumps({**line, "category": question.skill} if number else line) + "\n")
    result = run("--data", "mine.jsonl", "--suite", "text-only", "--keep", "16", "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["context"]["questions"] == 6
    assert data["context"]["data"].startswith("mine.jsonl (")
    assert data["context"]["split"] == "own"
    assert list(data["context"]["skills"])[:2] == ["all", "existence"]
    assert "LLaVA-7B" not in page(data)
