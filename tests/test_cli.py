"""The command: what it prints, and one line and exit code 2 for bad input."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from transformers.utils import logging as transformers_logging
from typer.testing import CliRunner

from foveate import INSIDE, METHODS, RRQR, SPARE, FastV, PyramidDrop, Random, ResPrune, SparseVLM, bench, mini
from foveate.cli import app
from foveate.errors import InvalidOption
from foveate.families import FAMILIES
from foveate.methods.spec import parse_method, split_methods
from foveate.pictures import load_picture

EXAMPLES = Path(__file__).parent.parent / "examples"
SCENE, PHOTO = str(EXAMPLES / "scene.png"), str(EXAMPLES / "photo.jpg")
QUESTION = "What letter is on the red circle?"
QUALITY = ["bench", "quality"]
COMMAND = [sys.executable, "-c", "from foveate.cli import main; main()"]


@pytest.fixture(autouse=True)
def _load_once(bundled, monkeypatch, tmp_path):
    """The bundled model is loaded once for all tests; files are written to an empty folder."""
    load = bench.load
    transformers_logging.disable_progress_bar()  # as the real one does: any test may load CLIP
    monkeypatch.setattr(bench, "load", lambda path="mini": bundled if path == "mini" else load(path))
    monkeypatch.chdir(tmp_path)


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


def run_json(*arguments):
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_compare_asks_five_arms_the_same_way():
    data = run_json("ask", SCENE, QUESTION, "--compare", "--max-new-tokens", "1")
    arms = [(answer["method"], answer["keep"]) for answer in data["answers"]]
    assert arms == [("none", 576), ("spare", 64), ("spare", 32), ("resprune", 64), ("resprune", 32)]
    full = data["answers"][0]
    for answer in data["answers"]:
        assert set(answer["seconds"]) == {"encode", "select", "prefill", "decode"}
        assert all(value >= 0 for value in answer["seconds"].values())
        assert answer["visual_tokens"] == answer["keep"]
        assert full["prompt_tokens"] - answer["prompt_tokens"] == 576 - answer["keep"]
    assert data["question"] == QUESTION
    assert data["picture"] == "foveate.png"
    assert Image.open("foveate.png").width > 1000


def test_compare_prints_question_tokens_seconds_and_picture():
    result = run("ask", SCENE, QUESTION, "--compare", "--draw", "kept.png", "--max-new-tokens", "1")
    lines = result.stdout.splitlines()
    assert lines[0] == QUESTION
    assert lines[-1] == "kept tokens: kept.png"
    for words in ("all tokens", "SPARE", "ResPrune", "encode", "prefill", "one run after a warm-up", "thread"):
        assert words in result.stdout
    assert Path("kept.png").is_file()


def test_all_tokens_answer_as_without_foveate(bundled):
    model, processor = bundled
    inputs = bench.requests(processor, [load_picture(SCENE)], [QUESTION])
    output = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    stock = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    data = run_json("ask", SCENE, QUESTION, "--method", "none", "--max-new-tokens", "6")
    assert data["answers"][0]["answer"] == stock.strip()


def test_the_default_is_spare_at_64_without_a_picture():
    data = run_json("ask", SCENE, QUESTION, "--max-new-tokens", "1")
    assert [(answer["method"], answer["keep"]) for answer in data["answers"]] == [("spare", 64)]
    assert data["picture"] is None
    assert not list(Path().iterdir())


def test_a_photo_that_is_not_square():
    image = Image.open(PHOTO)
    assert image.width != image.height
    data = run_json(
        "ask", PHOTO, "What colour is the hat?", "--keep", "0.11", "--draw", "photo.png", "--max-new-tokens", "1"
    )
    assert data["answers"][0]["visual_tokens"] == 63
    assert Path("photo.png").is_file()


def test_more_than_there_are_keeps_all():
    data = run_json("ask", SCENE, QUESTION, "--keep", "9999", "--max-new-tokens", "1", "--draw", "all.png")
    assert data["answers"][0]["visual_tokens"] == 576


def test_compare_takes_methods_with_options_and_budgets():
    arguments = ("--method", "spare:beta=0.5,relevance=llm,rrqr", "--keep", "16", "--max-new-tokens", "1")
    data = run_json("ask", SCENE, QUESTION, "--compare", *arguments)
    assert [answer["method"] for answer in data["answers"]] == ["none", "spare:beta=0.5,relevance=llm", "rrqr"]
    decided = [answer["decided"] for answer in data["answers"]]
    assert decided == [
        "UniformGrid()",
        "SPARE(beta=0.5, relevance='llm', sign='-', rows='raw')",
        "RRQR(rows='raw')",
    ]
    assert data["answers"][1]["tagger"] in ("spacy", "hanta", "content words")


def test_any_llava_checkpoint_works_without_template_and_clip(tmp_path):
    copy = tmp_path / "mine"
    shutil.copytree(mini.PATH, copy, ignore=shutil.ignore_patterns("clip", "chat_template.jinja"))
    data = run_json("ask", SCENE, QUESTION, "--model", str(copy), "--max-new-tokens", "1")
    assert data["answers"][0]["visual_tokens"] == 64
    stock = run_json("ask", SCENE, QUESTION, "--max-new-tokens", "1")
    assert data["answers"][0]["prompt_tokens"] == stock["answers"][0]["prompt_tokens"]


def test_equal_budgets_are_asked_once():
    data = run_json("ask", SCENE, QUESTION, "--keep", "9999,576,0.5,288,32", "--max-new-tokens", "1")
    assert [answer["visual_tokens"] for answer in data["answers"]] == [576, 288, 32]


def test_methods_lists_the_table(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES.parent / "tools"))
    rows = run_json("methods")["methods"]
    assert [row["name"] for row in rows] == [*METHODS, *INSIDE]
    spare = rows[0]
    assert rows == json.loads(importlib.import_module("methods_table").facts())["methods"]
    assert spare["options"] == {"beta": 0.25, "relevance": "auto", "sign": "-", "rows": "raw"}
    assert spare["needs"] == ["question"]
    assert all(row["source"] for row in rows)
    assert "2606.18681" in run("methods").stdout


def test_models_lists_the_families_and_mini():
    data = run_json("models")
    assert [row["model_type"] for row in data["families"]] == list(FAMILIES)
    assert data["bundled"][0]["name"] == "mini"
    assert "llava" in run("models").stdout


def bad_model(folder, text):
    folder.mkdir()
    (folder / "config.json").write_text(text)
    return str(folder)


BAD = {
    "keep zero": (["ask", SCENE, "?", "--keep", "0"], "allowed are a count"),
    "keep negative": (["ask", SCENE, "?", "--keep", "-3"], "allowed are a count"),
    "keep text": (["ask", SCENE, "?", "--keep", "abc"], "'abc'"),
    "keep above one": (["ask", SCENE, "?", "--keep", "1.5"], "1.5"),
    "keep nan": (["ask", SCENE, "?", "--keep", "nan"], "nan"),
    "keep empty": (["ask", SCENE, "?", "--keep", ""], "allowed are a count"),
    "no such image": (["ask", "nowhere.png", "?"], "no such file"),
    "not an image": (["ask", __file__, "?"], "not an image"),
    "a folder": (["ask", str(EXAMPLES), "?"], "not an image"),
    "extra image mark": (["ask", SCENE, "Is <image> like this?"], "<image>"),
    "unknown method": (["ask", SCENE, "?", "--method", "best"], "allowed are spare"),
    "unknown option": (["ask", SCENE, "?", "--method", "spare:gamma=1"], "allowed are beta, relevance"),
    "option of none": (["ask", SCENE, "?", "--method", "uniform:beta=1"], "none at all"),
    "bad option value": (["ask", SCENE, "?", "--method", "spare:beta=x"], "allowed is a number"),
    "option out of range": (["ask", SCENE, "?", "--method", "spare:beta=-1"], "0 or more"),
    "bad choice": (["ask", SCENE, "?", "--method", "spare:relevance=eye"], "auto, clip, llm, none"),
    "no checkpoint": (["ask", SCENE, "?", "--model", "empty"], "no checkpoint there"),
    "no such model": (["ask", SCENE, "?", "--model", "./no/such/path"], "no such folder"),
    "unsupported model": (["ask", SCENE, "?", "--model", "bert"], "supported are llava"),
    "no weights": (["ask", SCENE, "?", "--model", "hollow"], "cannot be loaded"),
    "broken weights": (["ask", SCENE, "?", "--model", "broken"], "cannot be loaded"),
    "draw without folder": (["ask", SCENE, "?", "--draw", "no/such/a.png"], "cannot be written"),
    "draw unknown kind": (["ask", SCENE, "?", "--draw", "a.xyz"], "kept.png"),
    "draw is a folder": (["ask", SCENE, "?", "--draw", "folder.png"], "cannot be written"),
    "no new tokens": (["ask", SCENE, "?", "--max-new-tokens", "0"], "max-new-tokens"),
    "no question": (["ask", SCENE], "QUESTION"),
    "unknown flag": (["ask", SCENE, "?", "--speed"], "--speed"),
    "unknown flag before a command": (["--speed", "ask"], "--speed"),
    "unknown command": (["see"], "see"),
    "no questions": ([*QUALITY, "--questions", "0"], "1 or more"),
    "negative questions": ([*QUALITY, "--questions", "-5"], "1 or more"),
    "questions text": ([*QUALITY, "--questions", "many"], "--questions"),
    "quality unknown method": ([*QUALITY, "--methods", "none,best"], "allowed are spare"),
    "quality keep": ([*QUALITY, "--keep", "64,x"], "'x'"),
    "unknown split": ([*QUALITY, "--split", "train"], "allowed are test, dev, fresh"),
    "unknown suite": ([*QUALITY, "--suite", "gamma"], "allowed are default, sign-space"),
    "split with own data": ([*QUALITY, "--split", "dev", "--data", "mine.jsonl"], "one of the two"),
    "no such data": ([*QUALITY, "--data", "nowhere.jsonl"], "no such file"),
    "bad data": ([*QUALITY, "--data", "mine.jsonl"], "line 2: not JSON"),
    "docs is a file": ([*QUALITY, "--docs", "mine.jsonl"], "allowed is a folder"),
    "results of another kind": ([*QUALITY, "--questions", "8", "--out", "other"], "not a file of earlier"),
    "out is a file": ([*QUALITY, "--questions", "8", "--out", "mine.jsonl"], "cannot be read or written"),
    "unknown command of bench": (["bench", "beauty"], "beauty"),
}


@pytest.fixture
def bad_files(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "results.jsonl").write_text('{"a": 1}\n')
    line = {"image": SCENE, "question": QUESTION, "answers": ["K"]}
    (tmp_path / "mine.jsonl").write_text(json.dumps(line) + "\n{oops\n")
    bad_model(tmp_path / "bert", '{"model_type": "bert"}')
    for name in ("hollow", "broken"):
        shutil.copytree(mini.PATH, tmp_path / name, ignore=shutil.ignore_patterns("clip"))
    (tmp_path / "hollow" / "model.safetensors").unlink()
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"not weights")


@pytest.mark.usefixtures("bad_files")
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(case):
    arguments, words = BAD[case]
    result = run(*arguments)
    assert result.exit_code == 2, (result.stdout, result.stderr, result.exception)
    assert result.stdout == ""
    told = [line for line in result.stderr.splitlines() if not line.endswith(" s so far")]  # on a slow machine
    assert len(told) == 1, result.stderr
    assert told[0].startswith("foveate: ")
    assert words in told[0]
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_the_real_command_prints_only_json_on_standard_output():
    done = subprocess.run(
        [*COMMAND, "ask", SCENE, QUESTION, "--json", "--max-new-tokens", "1"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert json.loads(done.stdout)["answers"][0]["visual_tokens"] == 64
    assert all(line.endswith(" s so far") for line in done.stderr.splitlines())  # on a slow machine


@pytest.mark.slow
def test_the_real_command_fails_in_one_line():
    done = subprocess.run([*COMMAND, "ask", "nowhere.png", "?"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "foveate: image 'nowhere.png': no such file\n"


def test_methods_as_text():
    assert parse_method("spare") == SPARE()
    assert parse_method("spare:beta=0.5,relevance=llm") == SPARE(beta=0.5, relevance="llm")
    assert parse_method("spare:relevance=none") == SPARE(relevance=None)
    assert parse_method("resprune:alpha=auto,pool=mean") == ResPrune(pool="mean")
    assert parse_method("resprune:alpha=0.3,seed=none") == ResPrune(alpha=0.3, seed="none")
    assert parse_method("spare:sign=+,rows=unit") == SPARE(sign="+", rows="unit")
    assert parse_method("random:seed=7") == Random(seed=7)
    assert parse_method("fastv:layer=3") == FastV(layer=3)
    assert parse_method("pyramiddrop:layers=2+4+7") == PyramidDrop(layers=(2, 4, 7))
    assert parse_method("sparsevlm:layers=none,recycle_dropped=false") == SparseVLM(recycle_dropped=False)
    assert parse_method(" rrqr ") == RRQR()


def test_a_list_of_methods_keeps_options_together():
    text = "none, spare:beta=0.5,relevance=llm ,rrqr,random:seed=1"
    assert split_methods(text) == ["none", "spare:beta=0.5,relevance=llm", "rrqr", "random:seed=1"]


@pytest.mark.parametrize("text", ["", "spare:", "spare:beta", "spare:beta=", "none:beta=1", "random:seed=1.5"])
def test_malformed_methods_are_refused_or_plain(text):
    if text == "spare:":
        assert parse_method(text) == SPARE()
    else:
        with pytest.raises(InvalidOption):
            parse_method(text)


@pytest.mark.parametrize(
    ("mode", "size"), [("L", (1, 1)), ("RGBA", (5, 400)), ("P", (400, 7)), ("I;16", (30, 30))]
)
def test_images_of_any_mode_and_shape(mode, size, tmp_path):
    path = tmp_path / "odd.png"
    Image.new(mode, size).save(path)
    arguments = ("--method", "uniform", "--max-new-tokens", "1", "--draw", "odd-kept.png")
    assert run_json("ask", str(path), "?", *arguments)["answers"][0]["visual_tokens"] == 64


def test_without_a_command_it_prints_its_help():
    assert "Usage" in run().output
    for command in ("ask", "bench", "methods", "models"):
        assert command in run("--help").stdout
    assert "Usage" in run("bench").output
    for name in ("quality", "speed"):
        assert name in run("bench", "--help").stdout
