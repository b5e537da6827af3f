"""`foveate bench serve` against a server of the tests' own, which answers at a pace that is known."""

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from foveate.bench import serve
from foveate.bench.serve.load import Load
from foveate.cli import app
from foveate.errors import InvalidInputs, InvalidOption

WAIT = {None: 0.25, "rrqr": 0.0, "spare": 0.5}  # seconds to the first token
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
        self.end_headers()
        prompt, count = (20 if method else 600), asked["max_tokens"]
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


SMALL = {"images": 2, "questions": 2, "concurrency": 2, "new_tokens": 4, "rounds": 1, "size": (8, 8)}


def test_what_a_server_does_is_what_is_reported(server):
    benchmark = serve.Benchmark.make(methods="rrqr,spare", keep="4", **{**SMALL, "images": 1, "rounds": 6})
    data = benchmark.measure(address(server) + "/v1/", None)
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
    (_, spare) = benchmark.measure(address(server), None)["rows"]
    assert spare["better"]["first_token"]["median"] < 1
    assert spare["better"]["first_token"]["sign"] == 0


def test_all_arms_are_sent_the_same_and_no_round_the_same_pictures(server):
    benchmark = serve.Benchmark.make(methods="rrqr,spare", keep="4", **SMALL)
    benchmark.measure(address(server), None)
    assert len(server.log) == benchmark.requests == 3 * 2 * 4
    sent = {method: sorted(entry[1:] for entry in server.log if entry[0] == method) for method in WAIT}
    assert sent[None] == sent["rrqr"] == sent["spare"]
    assert len({image for image, _ in sent[None]}) == 2 * 2
    rounds = [list(Load(3, 2, 1, 1, (8, 8)).round(number)) for number in (0, 1)]
    assert not {url for url, _ in rounds[0]} & {url for url, _ in rounds[1]}
    assert len(set(rounds[0])) == 6


def test_a_stopped_run_goes_on_and_other_loads_are_refused(server, tmp_path):
    make = serve.Benchmark.make
    first = make(methods="rrqr", keep="4", **SMALL).measure(address(server), tmp_path)
    sent = len(server.log)
    again = make(methods="rrqr", keep="4", **SMALL).measure(address(server), tmp_path)
    assert (again, len(server.log)) == (first, sent)
    make(methods="rrqr", keep="4", **{**SMALL, "rounds": 2}).measure(address(server), tmp_path)
    assert len(server.log) == sent + 2 * 4
    with pytest.raises(InvalidInputs, match="load"):
        make(methods="rrqr", keep="4", **{**SMALL, "images": 3}).measure(address(server), tmp_path)
    (tmp_path / "serve.jsonl").write_text("other\n")
    with pytest.raises(InvalidInputs, match="not a file of earlier results"):
        make(methods="rrqr", keep="4", **SMALL).measure(address(server), tmp_path)


def test_the_page_and_its_plot(server, tmp_path):
    data = serve.Benchmark.make(methods="rrqr", keep="4", **SMALL).measure(address(server), None)
    page = serve.write_documents(data, tmp_path, "foveate bench serve URL", "On a tiny machine.")
    text = page.read_text()
    assert "On a tiny machine." in text
    assert re.search(r"\| RRQR 4 \| .*x unclear.* \| 20 \| 35\.0 % \| 50\.0 % \|", text)
    assert (tmp_path / "serving.png").stat().st_size > 1000


def test_refusals_name_what_is_allowed(server, tmp_path):
    make = serve.Benchmark.make
    with pytest.raises(InvalidOption, match="concurrency 0: allowed is 1 or more"):
        make(concurrency=0)
    with pytest.raises(InvalidOption, match="no pruning is always measured"):
        make(methods="none")
    with pytest.raises(InvalidInputs, match="no vLLM server answers there"):
        make(methods="rrqr").measure("http://127.0.0.1:9", None)
    with pytest.raises(InvalidInputs, match=r"disabled[^\n]*$"):
        make(methods="random", keep="4", **SMALL).measure(address(server), None)


def test_the_command_line(server, tmp_path):
    load = "--images 1 --concurrency 1 --max-new-tokens 2 --rounds 1 --size 8 8"
    small = f"{load} --methods rrqr --keep 4".split()
    runner = CliRunner()
    found = runner.invoke(app, ["bench", "serve", address(server), *small, "--json"])
    assert found.exit_code == 0
    assert [row["label"] for row in json.loads(found.stdout)["rows"]] == ["all tokens", "RRQR 4"]
    found = runner.invoke(app, ["bench", "serve", address(server), *small, "--docs", str(tmp_path)])
    assert "RRQR 4" in found.stdout
    written = (tmp_path / "serving.md").read_text()
    assert f"bench serve {address(server)} --methods rrqr --keep 4 --images 1" in written
    assert "--size 8 8" in written
    found = runner.invoke(app, ["bench", "serve", "http://127.0.0.1:9"])
    assert found.exit_code == 2
    assert found.stderr.strip().splitlines()[-1].startswith("foveate: server 'http://127.0.0.1:9'")
