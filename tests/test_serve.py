"""`foveate bench serve` against a server of the tests' own, which answers at a pace that is known."""

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from foveate.bench import serve, web
from foveate.bench.quality.cells import DASH
from foveate.bench.serve.load import Load
from foveate.bench.serve.tables import cells
from foveate.cli import app
from foveate.errors import InvalidInputs, InvalidOption

WAIT = {None: 0.25, "rrqr": 0.0, "spare": 0.5, "divprune": 0.0}  # seconds to the first token
STEP = 0.01  # for each further one


class Handler(BaseHTTPRequestHandler):
    """The little of vLLM's protocol that the benchmark reads."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        pages = {
            "/v1/models": json.dumps({"data": [{"id": "tiny"}]}),
            "/version": json.dumps({"version": "0.32.0"}),
            "/metrics": "".join(
                f'vllm:{name}_total{{engine="0"}} {value}.0\n' for name, value in self.server.counters.items()
            ),
        }
        self.reply(200 if self.path in pages else 404, pages.get(self.path, "").encode())

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        options = asked["mm_processor_kwargs"]["foveate"]
        method = options and options["method"]
        image = asked["messages"][0]["content"][0]["image_url"]["url"]
        with self.server.lock:
            self.server.log.append((method, image, asked["messages"][0]["content"][1]["text"]))
            self.server.under_way += 1
            self.server.most = max(self.server.most, self.server.under_way)
            counters, new = self.server.counters, (method, image) not in self.server.seen
            self.server.seen.add((method, image))
            counters["prefix_cache_queries"] += 100
            counters["prefix_cache_hits"] += 10 if new else 60
            counters["mm_cache_queries"] += 1
            counters["mm_cache_hits"] += int(not new)
        if method == "random":
            error = {"message": "Per-request mm_processor_kwargs are disabled\nmore", "code": 400}
            self.done()
            return self.reply(400, json.dumps({"error": error}).encode())
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        if method == "norm":  # what announces more chunks, and is gone
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if method in ("norm", "uniform"):
            self.wfile.write(b"2\r\n\n\n\r\n" if method == "norm" else b"\n\n")
            self.done()
            self.close_connection = True
            return None
        prompt, count = (20 if method else 600), asked["max_tokens"]
        count -= method == "divprune"  # cut, as vLLM does at the end of its context
        time.sleep(WAIT[method])
        for number in range(count):
            time.sleep(STEP if number else 0)
            self.event({"choices": [{"index": 0, "delta": {"content": "a"}}]})
        usage = {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}
        self.event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")
        self.done()
        self.close_connection = True
        return None

    def done(self):
        with self.server.lock:
            self.server.under_way -= 1

    def event(self, chunk):
        whole = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "tiny", **chunk}
        self.wfile.write(f"data: {json.dumps(whole)}\n\n".encode())
        self.wfile.flush()

    def reply(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server():
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.lock, running.log, running.seen = threading.Lock(), [], set()
    running.under_way = running.most = 0
    running.counters = dict.fromkeys(
        ("prefix_cache_queries", "prefix_cache_hits", "mm_cache_queries", "mm_cache_hits"), 0
    )
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


def address(server):
    return f"http://127.0.0.1:{server.server_port}"


def found(server):
    return serve.Server.find(address(server))


SMALL = {"images": 2, "questions": 2, "concurrency": "2", "new_tokens": 4, "rounds": 1, "size": (8, 8)}


def test_what_a_server_does_is_what_is_reported(server):
    benchmark = serve.Benchmark.make(methods="rrqr,spare", keep="4", **{**SMALL, "images": 1, "rounds": 6})
    data = benchmark.measure(serve.Server.find(address(server) + "/v1/"), None)
    stock, rrqr, spare = data["rows"]
    assert [row["prompt"] for row in data["rows"]] == [600, 20, 20]
    for row, method in zip(data["rows"], (None, "rrqr", "spare"), strict=True):
        assert row["first_token"]["median"] >= WAIT[method]
        assert row["total"]["median"] >= WAIT[method] + 3 * STEP
        assert row["requests_per_second"]["median"] <= 2 / (WAIT[method] + 3 * STEP)
        # Of two requests one is repeated: 10 of 100 tokens are found at first, 60 then.
        assert row["found"] == {"prefix": pytest.approx(0.35), "images": pytest.approx(0.5)}
    assert rrqr["better"]["first_token"]["sign"] == rrqr["better"]["requests_per_second"]["sign"] == 1
    assert spare["better"]["first_token"]["sign"] == spare["better"]["requests_per_second"]["sign"] == -1
    assert stock["better"]["total"]["median"] == 1
    assert server.most == 2


def test_few_rounds_are_called_unclear(server):
    benchmark = serve.Benchmark.make(methods="spare", keep="4", **SMALL)
    (_, spare) = benchmark.measure(found(server), None)["rows"]
    assert spare["better"]["first_token"]["median"] < 1
    assert spare["better"]["first_token"]["sign"] == 0


def test_all_arms_are_sent_the_same_and_no_round_the_same_pictures(server):
    benchmark = serve.Benchmark.make(methods="rrqr,spare", keep="4", **SMALL)
    benchmark.measure(found(server), None)
    assert len(server.log) == benchmark.requests == 3 * 2 * 4
    sent = {method: sorted(entry[1:] for entry in server.log if entry[0] == method) for method in WAIT}
    assert sent[None] == sent["rrqr"] == sent["spare"]
    assert len({image for image, _ in sent[None]}) == 2 * 2
    benchmark.measure(found(server), None)  # nor do two runs: the server would find them in its caches
    assert len({image for method, image, _ in server.log if method is None}) == 2 * 2 * 2
    assert len(set(Load(3, 2, 1, (8, 8)).round(0))) == 6


def test_levels_of_concurrency_have_rounds_of_their_own(server):
    options = {**SMALL, "questions": 1, "images": 3}
    make = serve.Benchmark.make
    make(methods="rrqr", keep="4", **{**options, "concurrency": "1"}).measure(found(server), None)
    assert server.most == 1
    data = make(methods="rrqr", keep="4", **{**options, "concurrency": "1,3"}).measure(found(server), None)
    assert [(row["concurrency"], row["label"]) for row in data["rows"]] == [
        (level, arm) for level in (1, 3) for arm in ("all tokens", "RRQR 4")
    ]
    assert [row["better"]["total"]["median"] for row in data["rows"][::2]] == [1, 1]
    assert server.most == 3


def test_a_stopped_run_goes_on_and_other_loads_are_refused(server, tmp_path):
    make = serve.Benchmark.make
    first = make(methods="rrqr", keep="4", **SMALL).measure(found(server), tmp_path)
    sent = len(server.log)
    again = make(methods="rrqr", keep="4", **SMALL).measure(found(server), tmp_path)
    assert (again, len(server.log)) == (first, sent)
    twice = make(methods="rrqr", keep="4", **{**SMALL, "rounds": 2})
    twice.measure(found(server), tmp_path)
    assert len(server.log) == sent + 2 * 2 * 4  # a warm-up, and what is new
    results = tmp_path / "serve.jsonl"
    results.write_text("".join(results.read_text().splitlines(keepends=True)[:-1]))  # as if stopped within a round
    twice.measure(found(server), tmp_path)
    assert len(server.log) == sent + 2 * 2 * 2 * 4
    kept = [json.loads(line) for line in results.read_text().splitlines()[1:]]
    assert [entry["round"] for entry in kept] == [1, 1, 2, 2, 2]
    assert len({entry["seed"] for entry in kept}) == 3
    with pytest.raises(InvalidInputs, match="load"):
        make(methods="rrqr", keep="4", **{**SMALL, "images": 3}).measure(found(server), tmp_path)
    with pytest.raises(InvalidInputs, match="about"):
        twice.measure(found(server), tmp_path, about="another machine")
    (tmp_path / "serve.jsonl").write_text("other\n")
    with pytest.raises(InvalidInputs, match="not a file of earlier results"):
        make(methods="rrqr", keep="4", **SMALL).measure(found(server), tmp_path)


def test_the_page_and_its_plot(server, tmp_path):
    benchmark = serve.Benchmark.make(methods="rrqr", keep="4", **SMALL)
    data = benchmark.measure(found(server), None, about="On a tiny machine.")
    page = serve.write_documents(data, tmp_path, "foveate bench serve URL")
    text = page.read_text()
    assert "On a tiny machine." in text
    assert re.search(r"\| RRQR 4 \| .*x unclear.* \| 20 \| 35\.0 % \| 50\.0 % \|", text)
    assert (tmp_path / "serving.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("localhost:8000", "http://localhost:8000"),
        ("127.0.0.1:9/v1/", "http://127.0.0.1:9"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("example.org", "http://example.org"),
        ("HTTPS://example.org/v1", "HTTPS://example.org"),
        ("http://h:80a0", "http://h:80a0"),
    ],
)
def test_addresses_as_people_write_them(url, found):
    assert web.address(url) == found


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_a_server_that_sends_elsewhere_is_not_followed(target):
    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    elsewhere = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=elsewhere.serve_forever, daemon=True).start()
    with pytest.raises(InvalidInputs, match="no vLLM server answers there"):
        found(elsewhere)
    elsewhere.shutdown()
    elsewhere.server_close()


def test_refusals_name_what_is_allowed(server, tmp_path):
    make = serve.Benchmark.make
    with pytest.raises(InvalidOption, match="concurrency 0: allowed is 1 to 8"):
        make(concurrency="0")
    with pytest.raises(InvalidOption, match="concurrency 9: allowed is 1 to 8"):
        make(concurrency="4,9")
    with pytest.raises(InvalidOption, match="concurrency 'two': allowed are numbers"):
        make(concurrency="two")
    with pytest.raises(InvalidOption, match="no pruning is always measured"):
        make(methods="none")
    for url in ("127.0.0.1:9", "http://127.0.0.1:9", "http://127.0.0.1:80a0", "http://local host", "nonsense"):
        with pytest.raises(InvalidInputs, match=r"no vLLM server answers there[^\n]*$"):
            serve.Server.find(url)
    with pytest.raises(InvalidInputs, match="no vLLM server answers there"):
        serve.Server(f"{address(server)}/elsewhere", "tiny", "0.32.0").counters()
    with pytest.raises(InvalidInputs, match=r"disabled[^\n]*$"):
        make(methods="random", keep="4", **SMALL).measure(found(server), None)
    broken = {
        "uniform": "without its count of tokens",
        "norm": "Connection error",
        "divprune": "of 3 tokens where 4",
    }
    for method, said in broken.items():
        with pytest.raises(InvalidInputs, match=said):
            make(methods=method, keep="4", **{**SMALL, "concurrency": "1"}).measure(found(server), None)


def test_the_command_line(server, tmp_path):
    load = "--images 1 --concurrency 1 --max-new-tokens 2 --rounds 1 --size 8 8"
    small = f"{load} --methods rrqr --keep 4".split()
    runner = CliRunner()
    ran = runner.invoke(app, ["bench", "serve", address(server), *small, "--json"])
    assert ran.exit_code == 0
    assert [row["label"] for row in json.loads(ran.stdout)["rows"]] == ["all tokens", "RRQR 4"]
    ran = runner.invoke(app, ["bench", "serve", address(server), *small, "--docs", str(tmp_path)])
    assert "RRQR 4" in ran.stdout
    written = (tmp_path / "serving.md").read_text()
    assert f"bench serve {address(server)} --methods rrqr --keep 4 --images 1" in written
    assert "--size 8 8" in written
    ran = runner.invoke(app, ["bench", "serve", "http://127.0.0.1:9"])
    assert ran.exit_code == 2
    assert ran.stderr.startswith("foveate: server 'http://127.0.0.1:9'")


def test_answers_of_one_token_have_no_further_ones(server):
    options = {**SMALL, "new_tokens": 1, "rounds": 6, "questions": 1}
    data = serve.Benchmark.make(methods="rrqr", keep="4", **options).measure(found(server), None)
    assert [row["better"]["per_token"] for row in data["rows"]] == [None, None]
    assert [cells(row)[6:8] for row in data["rows"]] == [[DASH, DASH]] * 2
