"""Faults at the command line, each kind over all commands: one line, in time, and nothing lost or overwritten."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from transformers.utils import logging as transformers_logging
from typer.testing import CliRunner

import foveate
from foveate import INSIDE, METHODS, bench
from foveate.bench import defaults, serve
from foveate.bench.documents import MARK
from foveate.bench.lines import add_line, locked, read_lines
from foveate.bench.quality.suites import SUITES
from foveate.bench.speed import benchmark
from foveate.bench.speed.presets import PRESETS
from foveate.bench.speed.subject import DTYPES
from foveate.cli import app, names, output, telling
from foveate.cli.commands import BENCHMARKS, COMMANDS
from foveate.cli.line import one_line
from foveate.errors import InvalidInputs, InvalidOption
from foveate.methods.spec import canonical, parse_method
from test_cli import EXAMPLES, SCENE

ASK = ["ask", SCENE, "What is it?"]
RUNS = {
    "quality": ["bench", "quality", "--questions", "2", "--methods", "rrqr", "--keep", "8"],
    "speed": ["bench", "speed", "--methods", "rrqr", "--keep", "8"],
    "serve": ["bench", "serve", "http://localhost:8000", "--methods", "rrqr", "--keep", "8"],
}
FACTS = {"quality": defaults.Quality, "speed": defaults.Speed, "serve": defaults.Serve}
LONG = {"ask": ASK, **RUNS}
MAIN = "from foveate.cli import main; main()"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def reached(monkeypatch):
    """What a command does first that takes time: load a model, or ask a server. Here it only says so."""

    def arrange(action):
        monkeypatch.setattr(bench, "load", action)
        monkeypatch.setattr(benchmark, "of_checkpoint", action)
        monkeypatch.setattr(serve.Server, "find", action)

    arrange(refuse)
    return arrange


def refuse(*arguments):
    raise InvalidInputs("the run began")


def interrupt(*arguments):
    raise KeyboardInterrupt


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


def line_of(result, code=2):
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    assert result.stdout == ""
    (line,) = [told for told in result.stderr.splitlines() if not told.endswith(" s so far")]  # on a slow machine
    assert line.startswith("foveate: ")
    return line


def spawn(code, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300, **options
    )


# Slow start


def test_help_version_methods_and_usage_errors_do_without_torch():
    commands = [[name] for name in COMMANDS] + [["bench", name] for name in BENCHMARKS]
    cases = [["--help"], ["-h"], ["--version"], [], ["methods"], ["methods", "--json"], ["bench"], ["see"], ["-x"]]
    cases += [[*command, *more] for command in commands for more in (["--help"], ["-h"], ["--no-such-option"])]
    cases += [["ask", SCENE, "?", *more] for more in (["--keep", "0"], ["--method", "best"], ["--draw", "a.xyz"])]
    cases += [[*arguments, "--keep", "x"] for arguments in RUNS.values()]
    cases += [[*arguments, "--methods", "best"] for arguments in RUNS.values()]
    cases += [
        ["ask", "nowhere.png", "?"],
        ["ask", SCENE, " "],
        ["bench", "serve", "file:///x"],
        [*RUNS["quality"], "--data", "nowhere.jsonl"],
    ]
    code = (
        "import json, sys\nfrom typer.testing import CliRunner\nfrom foveate.cli import app\n"
        "for case in json.loads(sys.argv[1]):\n"
        "    CliRunner().invoke(app, case)\n"
        "    assert 'torch' not in sys.modules, case\n"
        "CliRunner().invoke(app, ['models'])\n"
        "assert 'torch' in sys.modules\n"  # the control
    )
    done = spawn(code, json.dumps(cases))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["methods"], ["see"]])
def test_the_command_starts_in_no_time(arguments):
    """In seconds of a processor: another process on the machine does not count."""

    def seconds():
        before = os.times()
        spawn(MAIN, *arguments)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(3)) < 0.7


def test_the_package_imports_nothing_until_it_is_asked():
    code = (
        "import sys, foveate\nassert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "from foveate.prune import prepare\nimport foveate.attach\n"  # the modules first, then the functions
        "assert callable(foveate.prune) and callable(foveate.attach)\n"
        "assert all(getattr(foveate, name) is not None for name in foveate.__all__)\n"
        "assert 'transformers' not in sys.modules\n"
    )
    done = spawn(code)
    assert done.returncode == 0, done.stderr


def test_names_of_packages_are_listed_and_others_are_refused():
    for package in (foveate, bench):
        assert set(package.__all__) <= set(dir(package))
        assert all(getattr(package, name) is not None for name in package.__all__)
        with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
            package.nonsense  # noqa: B018
    assert callable(bench.machine)


def test_what_is_known_without_torch_is_what_the_tables_say():
    assert tuple(SUITES) == defaults.Quality.SUITES
    assert tuple(PRESETS) == defaults.Speed.PRESETS
    assert tuple(DTYPES) == defaults.Speed.DTYPES


# Missing


def test_version_and_short_help():
    assert run("--version").stdout == f"foveate {foveate.__version__}\n"
    for command in ([], ["bench"], *([name] for name in COMMANDS), *(["bench", name] for name in BENCHMARKS)):
        assert "Usage" in run(*command, "-h").stdout


def test_the_table_of_methods_fits_and_holds_every_option():
    shown = run("methods").stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    for row in names.described_methods():
        assert row["name"] in shown
        assert all(f"{option}=" in shown for option in row["options"])


# Tracebacks


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_bytes_that_are_no_text_are_refused(name, place):
    arguments = [*LONG[name]]
    at = {"first": 0, "middle": 2, "last": len(arguments)}[place]
    arguments.insert(at, "caf\udce9")
    assert "'caf\\udce9': it holds bytes that are not UTF-8" in line_of(run(*arguments))


@pytest.mark.parametrize("arguments", [["methods"], ["methods", "--json"], ["--version"], ["--help"]])
def test_output_that_cannot_be_written_is_one_line(arguments):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", MAIN, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, timeout=300
        )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("foveate: output cannot be written")


def test_a_reader_that_has_gone_is_no_error_to_tell_of():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "methods"], stdout=writing, stderr=subprocess.PIPE, timeout=300
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("module", ["typer", "foveate.cli.commands", "numpy", "torch", "foveate.bench.answers"])
def test_ctrl_c_while_modules_load_is_one_line(module):
    code = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    done = spawn(code + MAIN, "ask", SCENE, "What is it?")
    *slow, last = done.stderr.splitlines()  # on a slow machine lines say what is loading
    assert (done.returncode, done.stdout, last) == (130, "", "foveate: stopped")
    assert all(line.endswith(" s so far") for line in slow)


def test_an_error_that_a_library_made_of_ctrl_c_is_told_as_ctrl_c(capsys):
    def load():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ImportError("cannot import") from error

    with pytest.raises(SystemExit) as caught, one_line():
        load()
    assert caught.value.code == 130
    assert capsys.readouterr().err == "foveate: stopped\n"


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("keeps", [False, True])
def test_ctrl_c_in_a_run_says_whether_it_goes_on(reached, name, keeps):
    reached(interrupt)
    more = ["--out", "results"] if keeps and name != "ask" else []
    line = line_of(run(*LONG[name], *more), code=130)
    assert line.startswith("foveate: stopped")
    assert ("the same command goes on" in line) == bool(more)


def test_unexpected_errors_are_one_line_too_unless_asked_where(monkeypatch, capsys):
    with pytest.raises(SystemExit) as caught, one_line(unexpected=True):
        raise RuntimeError("first\nsecond")
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith("foveate: unexpected RuntimeError: first (FOVEATE_TRACEBACK=1")
    monkeypatch.setenv("FOVEATE_TRACEBACK", "1")
    with pytest.raises(RuntimeError), one_line(unexpected=True):
        raise RuntimeError("first")


# What can be checked before a run is checked before it


@pytest.mark.parametrize("name", RUNS)
def test_the_folder_of_the_page_is_made(reached, tmp_path, name):
    assert "the run began" in line_of(run(*RUNS[name], "--docs", "new/docs"))
    assert (tmp_path / "new" / "docs").is_dir()


@pytest.mark.parametrize("name", RUNS)
def test_a_folder_that_cannot_be_written_is_known_before(reached, tmp_path, monkeypatch, name):
    (tmp_path / "file").write_text("")
    assert "a file; allowed is a folder" in line_of(run(*RUNS[name], "--docs", "file"))
    for option in ("--docs", "--out"):
        assert "cannot be" in line_of(run(*RUNS[name], option, "file/deeper"))
        assert "cannot be" in line_of(run(*RUNS[name], option, "/proc/nowhere"))


@pytest.mark.parametrize("name", RUNS)
def test_a_page_that_foveate_did_not_write_stays(reached, monkeypatch, tmp_path, name):
    page = tmp_path / "docs" / FACTS[name].PAGE
    page.parent.mkdir()
    page.write_text("# Mine\n")
    assert "foveate did not write" in line_of(run(*RUNS[name], "--docs", "docs"))
    assert page.read_text() == "# Mine\n"
    for answer, words in ((True, "the run began"), (False, "foveate did not write")):
        monkeypatch.setattr(f"foveate.cli.{name}.may_overwrite", lambda path, answer=answer: answer)
        assert words in line_of(run(*RUNS[name], "--docs", "docs"))
    page.write_text(f"# Quality\n\n{MARK}bench`.\n")
    assert "the run began" in line_of(run(*RUNS[name], "--docs", "docs"))


def test_without_a_terminal_nobody_is_asked(tmp_path):
    assert output.may_overwrite(tmp_path / "page.md") is False


@pytest.mark.parametrize("target", ["scene.png", "./scene.png"])
def test_the_image_itself_is_not_drawn_over(tmp_path, target):
    (tmp_path / "scene.png").write_bytes((EXAMPLES / "scene.png").read_bytes())
    assert "the image itself" in line_of(run("ask", "scene.png", "What?", "--draw", target))


# Silence


@pytest.mark.parametrize("name", LONG)
def test_without_a_terminal_lines_say_what_runs(reached, monkeypatch, name):
    monkeypatch.setattr(telling, "SILENCE", 0.02)

    def slow(*arguments):
        time.sleep(0.2)
        refuse()

    reached(slow)
    result = run(*LONG[name])
    *lines, last = result.stderr.splitlines()
    assert len(lines) >= 2
    assert all(line.startswith("foveate: ") and line.endswith(" s so far") for line in lines)
    assert "the run began" in last


def test_what_is_told_counts():
    told = telling.Telling(None)
    told("SPARE 64", 2, total=8)
    told("SPARE 32", 3)
    assert told.line(12.4) == "foveate: SPARE 32, 5 of 8, 12 s so far"


# Stores


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("garbage", [b"oops\n", b"\x00\x00\n", b"\xff\xfe\n", b'{"a": \n', b"\n"])
def test_a_damaged_line_is_named_before_the_run(reached, tmp_path, name, garbage):
    path = tmp_path / "results" / FACTS[name].FILE
    path.parent.mkdir()
    whole = b'{"settings": 1}\n{"result": 1}\n' + garbage + b'{"result": 2}\n'
    path.write_bytes(whole)
    line = line_of(run(*RUNS[name], "--out", "results"))
    assert f"{FACTS[name].FILE}', line 3: not JSON; delete that line to go on" in line
    assert path.read_bytes() == whole
    path.write_bytes(b'{"settings": 1}\n{"result": 1}\n{"resu')  # a killed run
    assert "the run began" in line_of(run(*RUNS[name], "--out", "results"))
    assert path.read_bytes() == b'{"settings": 1}\n{"result": 1}\n'
    path.write_bytes(garbage)
    assert "not a file of earlier results" in line_of(run(*RUNS[name], "--out", "results"))


@pytest.mark.parametrize("entry", [None, 3, [], "text", {}, {"more": 1}])
def test_a_line_of_another_shape_is_named(tmp_path, entry):
    path = tmp_path / "lines.jsonl"
    read_lines(path, {"a": 1}, dict)
    add_line(path, {"b": 1})
    add_line(path, entry)
    with pytest.raises(InvalidInputs, match="line 3: not a result"):
        read_lines(path, {"a": 1}, lambda line: {"b": line["b"]})


@pytest.mark.parametrize("name", RUNS)
def test_two_runs_do_not_write_to_one_folder(reached, name):
    with locked(Path("results"), FACTS[name].FILE):
        assert "another run writes there" in line_of(run(*RUNS[name], "--out", "results"))
        assert "the run began" in line_of(run(*RUNS[name], "--out", "others"))
    assert "the run began" in line_of(run(*RUNS[name], "--out", "results"))


def test_the_lock_of_a_dead_process_does_not_block(tmp_path):
    code = (
        "import os, signal, sys\nfrom filelock import FileLock\n"
        "FileLock(sys.argv[1]).acquire()\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / ".results.jsonl.lock"
    assert spawn(code, str(path)).returncode == -9
    with locked(tmp_path, "results.jsonl"):
        assert path.exists()
        with pytest.raises(TimeoutError):
            FileLock(path).acquire(timeout=0)


# Words


@pytest.mark.parametrize("kind", [*METHODS.values(), *INSIDE.values()], ids=lambda kind: kind.__name__)
def test_names_of_methods_and_of_their_classes_count_in_any_case(kind):
    (name,) = [own for own, known in {**METHODS, **INSIDE}.items() if known is kind]
    for written in (name, name.upper(), name.title(), kind.__name__, kind.__name__.upper()):
        assert canonical(written) == name
        assert parse_method(written) == kind()
        names.check_methods(written)


@pytest.mark.parametrize("name", [*METHODS, *INSIDE])
def test_a_name_with_a_slip_is_answered_with_the_name(name):
    slip = name[:-1] if len(name) > 4 else f"{name}x"
    for check in (parse_method, names.check_methods):
        with pytest.raises(InvalidOption, match=rf"did you mean {name}\?|did you mean \w+\?"):
            check(slip)


@pytest.mark.parametrize("name", ["suite", "preset", "dtype", "attention", "split"])
def test_other_names_are_offered_too(monkeypatch, name):
    slips = {"suite": "alhpa", "preset": "llava-1.5-7", "dtype": "bfloat", "attention": "sdp", "split": "tests"}
    command = "quality" if name in ("suite", "split") else "speed"
    assert "did you mean" in line_of(run("bench", command, f"--{name}", slips[name]))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("spare:beta=abc", "beta='abc': allowed is a number"),
        ("resprune:alpha=abc", "alpha='abc': allowed are a number, auto"),
        ("random:seed=1.5", "seed='1.5': allowed is a whole number"),
        ("spare:bete=1", "did you mean beta?"),
    ],
)
def test_values_are_refused_in_words(option, words):
    assert words in line_of(run(*ASK, "--method", option))


@pytest.mark.parametrize("model", ["/no/such", "./no/such", "~/no", "no/such/folder", "../no"])
def test_a_path_without_a_model_is_told_as_a_path(model):
    assert f"model {model!r}: there is no such folder" in line_of(run(*ASK, "--model", model))


# Reach


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https:/example.org", "two slashes go there, https://example.org"),
        ("http:example.org", "two slashes go there, http://example.org"),
        ("file:///etc/passwd", "allowed are http and https"),
        ("file:/etc/passwd", "allowed are http and https"),
        ("FILE:///etc/passwd", "allowed are http and https"),
        ("ftp://example.org", "allowed are http and https"),
        ("data:text/plain,x", "allowed are http and https"),
        ("gopher://x", "allowed are http and https"),
    ],
)
def test_a_server_is_asked_by_http_alone(url, words):
    assert words in line_of(run("bench", "serve", url))


# Limits


@pytest.mark.parametrize("name", ["ask", "own data", "speed"])
def test_what_is_longer_than_the_models_positions_is_refused(bundled, monkeypatch, name):
    monkeypatch.setattr(bench, "load", lambda path: bundled)
    monkeypatch.setattr("foveate.bench.checkpoint.load", lambda path: bundled)
    transformers_logging.set_verbosity_error()  # as `load` does
    transformers_logging.disable_progress_bar()
    question = "What is it? " * 1500
    own = {"image": SCENE, "question": question, "answers": ["x"]}
    with open("mine.jsonl", "w") as file:
        file.write(json.dumps(own))
    arguments = {
        "ask": ["ask", SCENE, question],
        "own data": ["bench", "quality", "--data", "mine.jsonl", "--methods", "rrqr", "--keep", "8"],
        "speed": [*RUNS["speed"], "--max-new-tokens", "3000"],
    }
    assert "allowed are 2048 in all" in line_of(run(*arguments[name]))


@pytest.mark.parametrize("question", ["", " ", "\n\t"])
def test_an_empty_question_is_refused(reached, question):
    assert "it is empty" in line_of(run("ask", SCENE, question))
