"""Suites, questions and what counts as right."""

import json

import pytest
from PIL import Image

from foveate.bench.arm import all_tokens, parse_arms, parse_budgets
from foveate.bench.defaults import Quality
from foveate.bench.quality import items
from foveate.bench.quality.items import matches, mini_items, own_items
from foveate.bench.quality.plan import Plan
from foveate.bench.quality.suites import CONTROLS, DEFAULT, SUITES, arms_of, default_suite, suites_of
from foveate.errors import InvalidInputs, InvalidOption
from foveate.methods import METHODS, RRQR
from foveate.mini.questions import SKILLS

BUDGETS = parse_budgets("64,16")


@pytest.mark.parametrize("name", [DEFAULT, *SUITES])
def test_every_suite_parses_to_arms_and_compares_rows_it_has(name):
    suite = suites_of(name)[name]
    arms = arms_of([suite], BUDGETS)
    assert arms[0] == all_tokens()
    assert len({arm.key for arm in arms}) == len(arms)
    labels = [variant.label for variant in suite.variants]
    assert len(set(labels)) == len(labels)
    assert {label for pair in suite.compared for label in pair} <= set(labels)
    assert set(suite.apart) <= set(SKILLS)


def test_the_default_suite_has_all_methods_and_all_controls():
    specs = [variant.spec for variant in default_suite().variants]
    assert specs[: len(METHODS)] == list(METHODS)
    assert set(CONTROLS) <= set(specs)
    assert len(arms_of([default_suite()], parse_budgets(Quality.BUDGETS))) == 1 + 5 * (len(METHODS) + 4)


def test_controls_join_whatever_is_asked_for():
    specs = [variant.spec for variant in default_suite(["none", "spare:beta=2"]).variants]
    assert specs == ["spare:beta=2", *CONTROLS]


def test_a_new_row_of_the_table_joins_without_code(monkeypatch):
    monkeypatch.setitem(METHODS, "newest", RRQR)
    assert "newest" in [variant.spec for variant in default_suite().variants]


def test_random_is_five_seeds_and_always_there():
    arms = arms_of([SUITES["alpha"]], BUDGETS)
    assert sum(arm.name.startswith("random:seed=") for arm in arms) == 5 * len(BUDGETS)


def test_suites_share_arms():
    apart = [arms_of([suite], BUDGETS) for suite in (default_suite(), SUITES["text-only"])]
    together = arms_of([default_suite(), SUITES["text-only"]], BUDGETS)
    assert len(together) == len({arm.key for arms in apart for arm in arms}) < sum(map(len, apart))


def test_the_plan_ranks_the_largest_budget_first_and_runs_equal_methods_once():
    plan = Plan.make(suites_of("default,text-only"), parse_budgets("16,64"), lambda arm: arm)
    assert [budget.keep for budget in plan.budgets] == [64, 16]
    assert [arm.budget.keep for arm in plan.arms] == sorted((arm.budget.keep for arm in plan.arms), reverse=True)
    first, second = plan.suites["default"].variants[1], plan.suites["text-only"].variants[0]
    assert plan.keys(first, plan.budgets[0]) == plan.keys(second, plan.budgets[0])


def test_unknown_suites_are_refused():
    assert list(suites_of("all")) == [DEFAULT, *SUITES]
    assert list(suites_of("beta, alpha")) == ["alpha", "beta"]
    with pytest.raises(InvalidOption, match="'gamma': allowed are default"):
        suites_of("alpha,gamma")


def test_none_appears_once_whatever_the_budgets():
    arms = parse_arms("none,none,rrqr,rrqr", "64,32,64")
    assert [arm.label for arm in arms] == ["all tokens", "RRQR 64", "RRQR 32"]


def test_the_examination_is_always_the_same_and_splits_never_meet():
    first, again, dev = mini_items(9, "test"), mini_items(16, "test"), mini_items(9, "dev")
    assert [(a.id, a.question) for a in first] == [(a.id, a.question) for a in again[:9]]
    assert [item.skill for item in first] == [*SKILLS, SKILLS[0]]
    assert {item.id for item in first}.isdisjoint(item.id for item in dev)
    pictures = [[item.image().tobytes() for item in some] for some in (first, again[:9], dev)]
    assert pictures[0] == pictures[1]
    assert set(pictures[0]).isdisjoint(pictures[2])
    with pytest.raises(InvalidOption, match="allowed are test, dev, fresh"):
        mini_items(1, "train")


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("red", True),
        ("Red.", True),
        (" the RED ", True),
        ("a red", True),
        ("dark blue", True),
        ("Two", True),
        ("2", True),
        ("light red", False),
        ("blue", False),
        ("", False),
    ],
)
def test_short_answers_match_as_in_vqa(answer, right):
    assert matches(answer, ["Red", "dark blue.", "two"]) is right


def test_only_mini_may_think_aloud():
    assert matches("A.", ["A"])
    assert not matches("", ["A"])
    assert not matches("the", ["A"])
    assert matches("b2 A.", ["A"], last_word=True)
    assert not matches("a1 c3 d4 3", ["3"])
    assert matches("a1 c3 d4 3", ["3"], last_word=True)
    assert not matches("3 a1", ["3"], last_word=True)


def own(tmp_path, *lines):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


GOOD = {"image": "a.png", "question": "What?", "answers": ["x", "y"]}


def test_a_users_own_questions(tmp_path):
    path = own(
        tmp_path, GOOD, "", {**GOOD, "category": "b"}, {**GOOD, "skill": "c", "image": str(tmp_path / "a.png")}
    )
    found = own_items(path, 9)
    assert [(item.id, item.skill) for item in found] == [("line-1", "all"), ("line-3", "b"), ("line-4", "c")]
    assert found[0].image().size == (8, 8)
    assert found[0].right("Y.")
    assert len(own_items(path, 2)) == 2


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_users_questions_as_any_editor_writes_them(tmp_path, encoding, end):
    own(tmp_path)
    questions = ["Où?", "one\u2028two\x85three", "是什麼?"]
    lines = [json.dumps({**GOOD, "question": question}, ensure_ascii=False) for question in questions]
    path = tmp_path / "edited.jsonl"
    path.write_bytes(end.join([lines[0], "", *lines[1:], ""]).encode(encoding))
    found = own_items(path, 9)
    assert [item.question for item in found] == questions
    assert [item.id for item in found] == ["line-1", "line-3", "line-4"]


def test_control_a_byte_order_mark_is_not_json(tmp_path):
    with pytest.raises(ValueError, match="BOM"):
        json.loads("\ufeff" + json.dumps(GOOD))
    with pytest.raises(InvalidInputs, match="line 1: not JSON"):
        own_items(own(tmp_path, "[" * 100_000), 9)


def test_a_users_pictures_are_shown_as_a_viewer_shows_them(tmp_path):
    path = own(tmp_path, GOOD)
    Image.new("I;16", (8, 8), 257 * 99).save(tmp_path / "a.png")
    assert own_items(path, 1)[0].image().getpixel((0, 0)) == (99, 99, 99)


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    path = own(tmp_path, GOOD)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [item.question for item in own_items(path, 9)] == ["What?"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{oops", "not JSON"),
        ("[1]", "not an object"),
        ({**GOOD, "image": 3}, "image=3"),
        ({**GOOD, "image": "b.png"}, "'b.png': no such file"),
        ({**GOOD, "image": "mine.jsonl"}, "'mine.jsonl': not an image that can be read"),
        ({"image": "a.png", "answers": ["x"]}, "question=None"),
        ({**GOOD, "question": " "}, "question=' '"),
        ({**GOOD, "answers": "x"}, "answers='x'"),
        ({**GOOD, "answers": []}, "answers=[]"),
        ({**GOOD, "answers": ["x", 3]}, "answers=['x', 3]"),
        ({**GOOD, "skill": 3}, "skill=3"),
    ],
)
def test_a_bad_line_is_named_with_what_is_allowed(tmp_path, line, words):
    with pytest.raises(InvalidInputs) as caught:
        own_items(own(tmp_path, GOOD, line), 9)
    text = str(caught.value)
    assert "line 2: " in text
    assert words in text
    assert items.LINE in text
    assert "\n" not in text


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "picture.jsonl").write_bytes(b"\xff\xfe\x80")
    for name, words in (
        ("no.jsonl", "no such file"),
        ("empty.jsonl", "empty"),
        ("picture.jsonl", "not a text file"),
    ):
        with pytest.raises(InvalidInputs, match=words):
            own_items(tmp_path / name, 9)
