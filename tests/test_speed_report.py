"""From seconds to tables, page and plots; a slow-down is called one. And the command."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from foveate.bench.speed import passing, plots, speed_tables, write_documents
from foveate.bench.speed.cells import layers, milliseconds, size, speedup
from foveate.bench.speed.contestants import contestants
from foveate.bench.speed.running import Effort, run
from foveate.bench.speed.store import Store, Timed, Weighed
from foveate.bench.speed.summary import MEASURES, summarise
from foveate.cli import app
from speedy import Still, shrink_presets, tiny_subject

CONTEXT = {
    "model": "toy",
    "identity": "toy",
    "attention": "sdpa",
    "dtype": "float32",
    "machine": "a machine",
    "versions": {"python": "3"},
    "code": "c0de",
    "new_tokens": 4,
    "memory": "not measured",
    "question": "what?",
}
SIZES = (64, 256, 576)


def printed(summary):
    console = Console(width=300, record=True, file=io.StringIO())
    for table in speed_tables(summary):
        console.print(table)
    return console.export_text()


def made_up(sizes=SIZES, seconds=lambda one, tokens: 1.0, repeats=6, keep="8,16"):
    """Every stage takes what ``seconds`` says, a per cent more in each round."""
    found, store = contestants("spare,fastv", keep), Store()
    for tokens in sizes:
        for one in found:
            for number in range(repeats):
                value = seconds(one, tokens) * (1 + number / 100)
                stages = dict.fromkeys(("encode", "select", "prefill", "decode"), value)
                store.add(Timed(tokens, 1, one.key, number, 0, stages, 4, 1.5, "abc123"))
            memory = None if one.keep == 8 else 5 * 1024**2
            store.add(
                Weighed(tokens, 1, one.key, memory, 1024, 70, [tokens, 8], "sdpa", "float32", f"{one.method}()")
            )
    return summarise(found, [(tokens, 1) for tokens in sizes], store, CONTEXT)


def crossing(one, tokens):
    """SPARE pays from 256 on; FastV never."""
    factor = {"spare": 1.4 if tokens < 256 else 0.5, "fastv": 1.25}.get(one.method, 1.0)
    return tokens / 1000 * factor


def test_what_takes_longer_is_called_slower(monkeypatch):
    """A clock that stands still but for a thousand seconds in each prune()."""
    subject, clock, ask = tiny_subject(), Still(), passing.Request.ask

    def slow(*arguments, **more):
        clock.now += 1000
        return ask(*arguments, **more)

    monkeypatch.setattr(passing.Request, "ask", slow)
    found, store = contestants("uniform", "8"), Store()
    cases = run(subject, found, [1], store, Effort(6, 0, 3), clock=clock)
    summary = summarise(found, cases, store, CONTEXT)
    stock, _, uniform = summary["cases"][0]["rows"]
    assert uniform["speedup"]["first_token"]["sign"] == uniform["speedup"]["end_to_end"]["sign"] == -1
    assert uniform["speedup"]["end_to_end"]["median"] == pytest.approx(3 / 1003, rel=1e-3)
    assert uniform["speedup"]["prefill"]["sign"] == 0
    assert stock["speedup"]["end_to_end"]["median"] == 1
    text = printed(summary)
    assert "slower" in text
    assert "faster" not in text


def test_ratios_are_taken_within_a_round_and_break_even_from_the_intervals():
    summary = made_up(seconds=crossing)
    spare = summary["cases"][0]["rows"][2]["speedup"]["end_to_end"]
    assert spare["median"] == pytest.approx(1 / 1.4)
    assert spare["interval"] == pytest.approx([1 / 1.4] * 2)  # the drift is the same in both
    pays = {entry["label"]: (entry["first_token"], entry["end_to_end"]) for entry in summary["break_even"]}
    assert pays == {
        "SPARE 8": (256, 256),
        "SPARE 16": (256, 256),
        "FastV 8": (None, None),
        "FastV 16": (None, None),
    }
    text = printed(summary)
    for words in ("2.00x faster (2.00–2.00)", "0.80x slower (0.80–0.80)", "all tokens, our path", "5.00 MiB", "–"):
        assert words in text
    row = summary["cases"][0]["rows"][0]["seconds"]
    assert set(row) == set(MEASURES)
    assert row["end_to_end"]["median"] == pytest.approx(4 * 0.064 * 1.025)
    assert row["decode_per_token"]["median"] == pytest.approx(0.064 * 1.025 / 3)


@pytest.mark.parametrize("repeats", [1, 5])
def test_few_repeats_leave_all_unclear(repeats):
    summary = made_up(seconds=crossing, repeats=repeats)
    assert {entry[name] for entry in summary["break_even"] for name in ("first_token", "end_to_end")} == {None}
    text = printed(summary)
    assert ("2.00x unclear (2.00–2.00)" in text) == (repeats > 1)  # a single one has no interval
    assert "2.00x unclear" in text
    assert not any(word in text for word in ("faster", "slower"))


def test_rounds_that_were_cut_do_not_count():
    found, store = contestants("spare", "8"), Store()
    for number, present in ((0, 3), (1, 2)):
        for one in found[:present]:
            stages = dict.fromkeys(("encode", "select", "prefill", "decode"), 1.0)
            store.add(Timed(64, 1, one.key, number, 0, stages, 4, None, None))
    for one in found:
        store.add(Weighed(64, 1, one.key, None, 1, 70, [64], "sdpa", "float32", None))
    summary = summarise(found, [(64, 1)], store, CONTEXT)
    assert summary["context"]["repeats"] == 1
    assert summary["context"]["load"] is None


def test_commits_and_load_are_of_what_is_shown():
    found, store = contestants("spare,uniform", "8"), Store()
    stages = dict.fromkeys(("encode", "select", "prefill", "decode"), 1.0)
    passes = [(64, one, 0, 1.5, "shown") for one in found]
    passes += [(64, found[0], 1, 7.0, "cut"), (576, found[0], 0, 8.0, "other case")]
    for tokens, one, number, load, commit in passes:
        load, commit = (9.0, "other arm") if one.method == "uniform" else (load, commit)
        store.add(Timed(tokens, 1, one.key, number, 0, stages, 4, load, commit))
    for one in found:
        store.add(Weighed(64, 1, one.key, None, 1, 70, [64], "sdpa", "float32", None))
    context = summarise(found[:3], [(64, 1)], store, CONTEXT)["context"]
    assert context["commits"] == ["shown"]
    assert context["load"] == [1.5, 1.5]


def test_one_new_token_has_no_decoding_to_compare():
    found, store = contestants("spare", "8"), Store()
    for one in found:
        stages = {"encode": 1.0, "select": 0.1, "prefill": 1.0, "decode": 0.0}
        store.add(Timed(64, 1, one.key, 0, 0, stages, 1, None, None))
        store.add(Weighed(64, 1, one.key, None, 1, 70, [64], "sdpa", "float32", None))
    (case,) = summarise(found, [(64, 1)], store, CONTEXT)["cases"]
    assert case["rows"][2]["speedup"]["decode_per_token"] is None
    assert speedup(None) == "–"


@pytest.mark.parametrize("sizes", [SIZES, SIZES[-1:]])
def test_the_page_and_its_plots(sizes, tmp_path):
    pytest.importorskip("matplotlib")
    page = write_documents(made_up(sizes, crossing), tmp_path, "foveate bench speed")
    text = page.read_text(encoding="utf-8")
    for words in (
        "a machine",
        "commit abc123",
        "code c0de",
        "6 repeats",
        "97 %",
        "load average 1.5",
        "slower",
        "`spare()`",
    ):
        assert words in text
    assert text.count("\n## ") == len(sizes) + 1
    for name in ("performance-stages.png", "performance-break-even.png"):
        assert f"]({name})" in text
        picture = Image.open(tmp_path / name).convert("L")
        assert picture.width > 600
        assert len(set(picture.resize((200, 100)).get_flattened_data() if hasattr(picture, "get_flattened_data")
                       else picture.resize((200, 100)).getdata())) > 20  # fmt: skip


def test_counts_and_fractions_share_an_axis_of_tokens_kept():
    pytest.importorskip("matplotlib")
    figure = plots._break_even(made_up((576,), crossing, keep="64,0.5,0.11"), "keep")
    assert [tick.get_text() for tick in figure.axes[-1].get_xticklabels()] == ["63", "64", "288"]
    assert figure.axes[-1].get_xlabel() == "tokens kept"


@pytest.mark.parametrize("over", ["batch", "tokens"])
def test_break_even_is_told_by_batch_and_by_tokens(over, tmp_path):
    """The same times over either: SPARE pays from the second place on, FastV nowhere."""
    pytest.importorskip("matplotlib")
    found, store = contestants("spare,fastv", "8"), Store()
    cases = [(576, batch) if over == "batch" else (batch * 64, 1) for batch in (1, 4, 16)]
    for place, (tokens, batch) in enumerate(cases):
        for one in found:
            factor = {"spare": 0.5 if place else 1.4, "fastv": 1.25}.get(one.method, 1.0)
            stages = dict.fromkeys(("encode", "select", "prefill", "decode"), factor * batch)
            for number in range(6):
                store.add(Timed(tokens, batch, one.key, number, 0, stages, 4, None, None))
            counts = (None, None) if one.key == "stock" else (75, 17)
            store.add(Weighed(tokens, batch, one.key, None, 1, 70, [64], "sdpa", "float32", one.method, *counts))
    summary = summarise(found, cases, store, CONTEXT)
    entries = summary["break_even_batch" if over == "batch" else "break_even"]
    measured = [case[over == "batch"] for case in cases]
    assert [(entry["label"], entry["measured"], entry["first_token"]) for entry in entries] == [
        ("SPARE 8", measured, measured[1]),
        ("FastV 8", measured, None),
    ]
    text = write_documents(summary, tmp_path, "foveate bench speed").read_text(encoding="utf-8")
    assert ("By batch:" in text) == (tmp_path / "performance-batches.png").exists() == (over == "batch")
    assert "75 operations, 17 reads" in text
    assert "75 operations, 17 reads" in printed(summary)


def test_numbers_as_text():
    assert size(None) == "–"
    assert [size(n) for n in (12, 2048, 3 * 1024**2, 2 * 1024**3)] == ["12 B", "2.00 KiB", "3.00 MiB", "2.00 GiB"]
    assert layers([576, 576, 64, 64]) == "576, 64 from layer 3"
    entry = {"median": 0.41234, "quartiles": [0.4, 0.42], "interval": [0.4, 0.42]}
    assert milliseconds(entry, spread=True) == "412 (400–420)"


# --- the command ---


def command(*arguments):
    return CliRunner().invoke(app, ["bench", "speed", *arguments])


SMALL = ("--preset", "qwen2.5-vl-0.5b", "--methods", "uniform,fastv", "--keep", "8", "--max-new-tokens", "2")


@pytest.mark.slow
def test_the_command_writes_results_a_page_and_goes_on(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    shrink_presets(monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("docs").mkdir()
    options = (*SMALL, "--sizes", "16,64", "--batch", "1,2", "--repeats", "2", "--out", "out", "--docs", "docs")
    result = command(*options)
    assert result.exit_code == 0, result.output
    for words in (
        "all tokens, stock",
        "UniformGrid 8",
        "FastV 8",
        "16 visual tokens, batch 2",
        "random",
        "repeats",
    ):
        assert words in result.stdout
    text = Path("docs/performance.md").read_text(encoding="utf-8")
    assert "bench speed --preset qwen2.5-vl-0.5b" in text
    lines = Path("out/speed.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + 4 * 4 * (2 + 1)
    again = command(*options, "--json")
    assert again.exit_code == 0, again.output
    assert Path("out/speed.jsonl").read_text(encoding="utf-8").splitlines() == lines
    assert [case["tokens"] for case in json.loads(again.stdout)["cases"]] == [16, 16, 64, 64]


def test_the_bundled_model_is_measured_too():
    result = command(
        "--methods", "spare", "--keep", "64", "--repeats", "1", "--warmup", "0", "--max-new-tokens", "2", "--json"
    )
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert [row["tokens_per_layer"][0] for row in data["cases"][0]["rows"]] == [576, 576, 64]
    assert data["context"]["question"] is None


BAD = {
    "unknown preset": (("--preset", "gpt"), "allowed are llava-0.5b"),
    "preset and model": ((*SMALL, "--model", "mini"), "one of the two"),
    "preset and clip": ((*SMALL, "--clip", "here"), "one of the two"),
    "no such model": (("--model", "./no/such"), "no such folder"),
    "unknown method": (("--methods", "best"), "allowed are spare"),
    "none": (("--methods", "none"), "always measured"),
    "keep": (("--keep", "x"), "'x'"),
    "batch": (("--batch", "0"), "numbers such as 1"),
    "sizes": ((*SMALL, "--sizes", "1,x"), "numbers such as 1"),
    "sizes of a checkpoint": (("--sizes", "64"), "allowed with --preset"),
    "text of a checkpoint": (("--text", "64"), "allowed with --preset"),
    "short text": ((*SMALL, "--text", "3"), "allowed is more"),
    "repeats": (("--repeats", "0"), "1 or more"),
    "warmup": (("--warmup", "-1"), "0 or more"),
    "new tokens": (("--max-new-tokens", "0"), "1 or more"),
    "attention": ((*SMALL, "--attention", "flash"), "allowed are sdpa"),
    "dtype": ((*SMALL, "--dtype", "int8"), "allowed are float32"),
    "docs": ((*SMALL, "--docs", __file__), "allowed is a folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(case):
    arguments, words = BAD[case]
    result = command(*arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.endswith(" s so far")]  # on a slow machine
    assert len(lines) == 1
    assert words in lines[0]
