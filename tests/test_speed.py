"""What is timed and weighed: the same points and backends in every arm, caches by arithmetic, interrupted runs."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from foveate.bench.defaults import Speed
from foveate.bench.speed import memory, passing, running
from foveate.bench.speed.benchmark import Benchmark
from foveate.bench.speed.cells import speedup
from foveate.bench.speed.clock import clock_of
from foveate.bench.speed.contestants import STOCK, WHOLE, contestants
from foveate.bench.speed.memory import NOT_MEASURED, how, peak
from foveate.bench.speed.passing import STAGES, passed
from foveate.bench.speed.presets import PRESETS, build
from foveate.bench.speed.running import Effort, order, run
from foveate.bench.speed.spread import spread
from foveate.bench.speed.store import Store
from foveate.bench.speed.subject import Subject
from foveate.errors import InvalidInputs, InvalidOption
from speedy import Still, shrink_presets, tiny_subject

METHODS = "uniform,norm,fastv:layer=1"
EFFORT = Effort(repeats=3, warmup=1, new_tokens=3)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def subject():
    return tiny_subject()


def all_run(subject, store=None, methods=METHODS, effort=EFFORT, batches=(1,), **more):
    store = store or Store()
    found = contestants(methods, "8")
    return found, run(subject, found, batches, store, effort, **more), store


# --- presets ---


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_parameters_it_says(name):
    model = build(PRESETS[name], torch.device("meta"), torch.bfloat16, "sdpa")
    assert model.num_parameters() == PRESETS[name].parameters
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not model.training


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_runs_with_every_default_method(name, monkeypatch):
    shrink_presets(monkeypatch)
    sizes = {"llava-next-7b": "1752", "qwen2.5-vl-0.5b": "64", "qwen2.5-vl-7b": "64"}.get(name)
    benchmark = Benchmark.make(
        methods="spare,resprune,uniform,fastv,pyramiddrop,sparsevlm", keep="48", sizes=sizes, repeats=1, warmup=0,
        new_tokens=2,
    )  # fmt: skip
    built = benchmark.subject(preset=name, model=None)
    tokens = PRESETS[name].tokens if sizes is None else int(sizes)
    summary = benchmark.measure(built, benchmark.store(built, None))
    (case,) = summary["cases"]
    assert case["tokens"] == tokens
    assert len(case["rows"]) == 8
    for row in case["rows"]:
        before = row["tokens_per_layer"][0]
        assert before == (48 if row["method"] in ("spare", "resprune", "uniform") else tokens)
        assert row["tokens_per_layer"][-1] < tokens or row["keep"] is None
        assert set(row["seconds"]) >= {"encode", "select", "prefill", "decode_per_token", "end_to_end"}
        assert row["kv_bytes"] > 0
    assert "relevance='llm'" in case["rows"][2]["decided"]


def test_random_weights_are_finite_and_norms_are_as_they_start(monkeypatch):
    shrink_presets(monkeypatch)
    model = build(PRESETS["llava-0.5b"], CPU, torch.float32, "eager")
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    assert bool((model.get_decoder().norm.weight == 1).all())
    assert model.get_input_embeddings().weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_pruning_to_64_of_576_leaves_less_than_a_quarter_of_the_decoders_operations():
    decoder = build(PRESETS["llava-0.5b"], torch.device("meta"), torch.float32, "sdpa").get_decoder()

    def operations(columns):
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            entering = torch.empty(1, columns, 896, device="meta")
            decoder(inputs_embeds=entering, attention_mask={"full_attention": None}, use_cache=False)
        return counter.get_total_flops()

    assert operations(576 + 64) > 4 * operations(64 + 64)


@pytest.mark.parametrize(
    ("preset", "sizes", "words"),
    [
        ("llava-0.5b", "144", "allowed is 576"),
        ("llava-next-7b", "576", "allowed are 1752, 2928"),
        ("qwen2.5-vl-0.5b", "13", "such as 64"),
        ("qwen2.5-vl-0.5b", "2", "such as 64"),
    ],
)
def test_sizes_that_a_tower_cannot_make_are_refused_before_anything_is_built(preset, sizes, words):
    benchmark = Benchmark.make(methods="uniform", keep="8", sizes=sizes)
    with pytest.raises(InvalidOption, match=words):
        benchmark.subject(preset=preset, model=None)


# --- one pass ---


def test_all_arms_are_cut_at_the_same_points(subject):
    inputs = subject.inputs(None, 1)
    for one in contestants(METHODS, "8"):
        clock = Still()
        done = passed(subject, one, inputs, 3, clock)
        assert clock.now == 4
        assert set(done.seconds) == set(STAGES)
        assert sum(done.seconds.values()) == pytest.approx(3)
        assert (done.seconds["prefill"], done.seconds["decode"]) == (1, 1)
        assert (done.seconds["select"] == 0) == (one.key == STOCK)


def test_counting_tokens_is_no_part_of_stocks_time(subject, monkeypatch):
    clock, count, calls = Still(), Subject.visual_tokens, []

    def slow(self, inputs):
        calls.append(clock.now)
        clock.now += 1000
        return count(self, inputs)

    monkeypatch.setattr(Subject, "visual_tokens", slow)
    done = passed(subject, contestants("uniform", "8")[0], subject.inputs(None, 1), 3, clock)
    assert calls
    assert done.seconds == {"encode": 1, "select": 0, "prefill": 1, "decode": 1}


def test_stock_is_generate_and_nothing_else(subject, monkeypatch):
    inputs, (stock, whole) = subject.inputs(None, 1), contestants("uniform", "8")[:2]
    monkeypatch.setattr(passing.Request, "ask", None)
    done = passed(subject, stock, inputs, 3, clock_of(CPU))
    assert done.tokens_per_layer == [36] * 3
    assert done.decided is None
    with pytest.raises(TypeError):
        passed(subject, whole, inputs, 3, clock_of(CPU))


@pytest.mark.parametrize("batch", [1, 2])
def test_caches_hold_what_the_arithmetic_says(subject, batch):
    inputs = subject.inputs(None, batch)
    text, new = inputs["input_ids"].shape[1] - 36, 3
    expected = {"stock": [36] * 3, "whole": [36] * 3, "uniform": [8] * 3, "norm": [8] * 3, "fastv": [36, 8, 8]}
    for one in contestants(METHODS, "8"):
        done = passed(subject, one, inputs, new, clock_of(CPU))
        layers = expected[one.method.partition(":")[0]]
        assert done.tokens_per_layer == layers
        cached = [layer.keys.shape[-2] for layer in done.cache.layers]
        assert cached == [tokens + text + new - 1 for tokens in layers]
        columns, heads, width, both, bytes_each = sum(cached), 2, 12, 2, 4
        assert done.kv_bytes == batch * columns * heads * width * both * bytes_each


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_both_arms_use_the_backend_that_was_asked_for(attention, monkeypatch):
    own = tiny_subject(attention)
    calls = []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k)
    )
    counts = {}
    for one in contestants("uniform", "8"):
        calls.clear()
        passed(own, one, own.inputs(None, 1), 3, clock_of(CPU))
        counts[one.key] = len(calls)
    assert len(set(counts.values())) == 1
    assert (counts[STOCK] > 0) == (attention == "sdpa")
    assert own.attention == attention


def test_the_vision_towers_backend_is_told_where_it_differs():
    own = tiny_subject()
    own.model.set_attn_implementation({"vision_config": "eager"})
    assert own.attention == "sdpa, eager"


# --- rounds ---


def test_each_round_has_every_arm_once_in_an_order_of_its_own(subject):
    found, (case,), store = all_run(subject, effort=replace(EFFORT, repeats=4), clock=Still())
    orders = []
    for number in range(4):
        here = sorted((t for t in store.timed.values() if t.round == number), key=lambda t: t.place)
        assert [t.place for t in here] == list(range(len(found)))
        assert sorted(t.contestant for t in here) == sorted(one.key for one in found)
        orders.append([t.contestant for t in here])
        assert orders[-1] == [one.key for one in order(found, number)]
    assert len({tuple(names) for names in orders}) == 4
    rounds = [t.round for t in store.timed.values()]
    assert rounds == sorted(rounds)  # no arm runs its repeats in one go
    assert store.rounds(case, [one.key for one in found]) == [0, 1, 2, 3]


@pytest.mark.parametrize("warmup", [0, 1, 2])
def test_every_arm_has_passed_before_any_is_weighed(subject, warmup, monkeypatch):
    events, weigh, run_once = [], running._weighed, running.passed
    monkeypatch.setattr(running, "_weighed", lambda *a: events.append("weighed") or weigh(*a))
    monkeypatch.setattr(running, "passed", lambda *a: events.append(a[1].key) or run_once(*a))
    effort, told = Effort(repeats=1, warmup=warmup, new_tokens=2), []
    found, _, _ = all_run(subject, effort=effort, progress=lambda label, passes: told.append(passes))
    before = events[: events.index("weighed")]
    assert sorted(before) == sorted([one.key for one in found] * max(1, warmup))
    assert sum(told) == effort.passes(len(found))


def test_results_are_complete(subject):
    found, cases, store = all_run(subject, batches=(1, 2))
    assert cases == [(36, 1), (36, 2)]
    assert len(store.timed) == 2 * 3 * len(found)
    assert len(store.weighed) == 2 * len(found)
    for weighed in store.weighed.values():
        assert (weighed.attention, weighed.dtype) == ("sdpa", "float32")
        assert weighed.memory is None or weighed.memory >= 0
    for timed in store.timed.values():
        assert set(timed.seconds) == set(STAGES)
        assert all(value >= 0 for value in timed.seconds.values())
        assert timed.new_tokens == 3
    assert {one.label for one in found[:2]} == {"all tokens, stock", "all tokens, our path"}


def test_a_stopped_run_goes_on_and_a_cut_round_is_run_again(subject, tmp_path):
    settings = {"model": "tiny"}
    found = contestants(METHODS, "8")
    seen = []

    def stop(label, passes):
        seen.append(label)
        if len(seen) == 2 * len(found) + len(found) + 2:  # warm-ups, weighing, a round and two passes
            raise KeyboardInterrupt

    store = Store.open(tmp_path, settings)
    with pytest.raises(KeyboardInterrupt):
        all_run(subject, store, progress=stop)
    path = tmp_path / Speed.FILE
    path.write_text(path.read_text() + '{"tokens": 36, "ba')  # as a power cut leaves it
    again = Store.open(tmp_path, settings)
    assert again.rounds((36, 1), [one.key for one in found]) == [0]
    first = {key: value for key, value in again.timed.items() if key[1] == 0}
    told = []
    all_run(subject, again, progress=lambda label, passes: told.append(passes))
    assert sum(told) == EFFORT.passes(len(found))
    assert told[0] == 2 * len(found)  # a round and what was weighed
    assert {key: value for key, value in again.timed.items() if key[1] == 0} == first
    known = Store.open(tmp_path, settings)
    assert len(known.timed) == 3 * len(found)
    assert known.timed == again.timed

    told.clear()
    all_run(subject, known, progress=lambda label, passes: told.append((label, passes)))
    assert told == [("stored", EFFORT.passes(len(found)))]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == settings
    assert asdict(next(iter(known.weighed.values()))) in lines


def test_other_settings_and_other_files_are_refused(tmp_path, monkeypatch):
    shrink_presets(monkeypatch)
    benchmark = Benchmark.make(methods="uniform", keep="8", sizes="64")
    plain = benchmark.subject(preset="qwen2.5-vl-0.5b", model=None)
    half = benchmark.subject(preset="qwen2.5-vl-0.5b", model=None, dtype="bfloat16")
    longer = benchmark.subject(preset="qwen2.5-vl-0.5b", model=None, text=99)
    benchmark.store(plain, tmp_path)
    benchmark.store(plain, tmp_path)
    with pytest.raises(InvalidInputs, match="made with dtype 'float32', not 'bfloat16'"):
        benchmark.store(half, tmp_path)
    with pytest.raises(InvalidInputs, match=r"made with model .*64 tokens of text.*99"):
        benchmark.store(longer, tmp_path)
    (tmp_path / Speed.FILE).write_text(json.dumps({"a": 1}) + "\n")
    with pytest.raises(InvalidInputs, match="not a file of earlier results"):
        benchmark.store(plain, tmp_path)


def cuda_is_full(*arguments):
    raise torch.OutOfMemoryError("CUDA out of memory")


def cpu_is_full(*arguments):
    torch.empty(2**55)  # more than can be addressed


@pytest.mark.parametrize("full", [cuda_is_full, cpu_is_full])
def test_what_does_not_fit_is_said_in_one_line(subject, monkeypatch, full):
    monkeypatch.setattr(running, "passed", full)
    with pytest.raises(InvalidInputs, match=r"batch 1 with 36 visual tokens: out of memory.*--sizes$"):
        all_run(subject)


def test_other_errors_are_not_called_a_lack_of_memory(subject, monkeypatch):
    def wrong(*arguments):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(running, "passed", wrong)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        all_run(subject)


# --- memory and spread ---


def test_the_peak_is_what_is_in_use_at_once():
    if how(CPU) == NOT_MEASURED:
        pytest.skip("this system does not tell")
    size = 64 * 1024**2
    with peak(CPU) as found:
        for _ in range(3):
            block = torch.ones(size // 4)
            del block
    assert 0.9 * size < found.growth < 2 * size
    with peak(CPU) as nothing:
        pass
    assert nothing.growth < 0.1 * size


def test_where_memory_is_not_told_it_is_not_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")
    with peak(CPU) as found:
        torch.ones(8)
    assert found.growth is None
    assert how(CPU) == NOT_MEASURED


def test_intervals_of_medians_are_between_order_statistics():
    assert spread([3.0]).confidence == 0
    assert [spread([2] * repeats).sign for repeats in (1, 5, 6)] == [0, 0, 1]
    assert [spread([0.5] * repeats).sign for repeats in (1, 5, 6)] == [0, 0, -1]
    six = spread([6, 1, 5, 2, 4, 3])
    assert (six.median, six.interval, six.confidence) == (3.5, (1, 6), 1 - 2 / 64)
    nine = spread(range(9))
    assert (nine.median, nine.interval) == (4, (1, 7))
    assert nine.confidence == pytest.approx(1 - 2 * 10 / 512)
    assert spread([2, 2.5, 3] * 2).sign == 1
    assert spread([0.5, 0.9] * 3).sign == -1
    assert spread([0.9, 1.1] * 3).sign == 0


def test_contestants_that_do_the_same_run_once():
    found = contestants("spare,spare:beta=0.25,uniform", "8,16")
    assert [one.key for one in found[:2]] == [STOCK, WHOLE]
    assert [one.method for one in found[2:]] == ["spare:beta=0.25"] * 2 + ["uniform"] * 2
    assert [one.keep for one in found[2:]] == [8, 16, 8, 16]
    with pytest.raises(InvalidOption, match="always measured"):
        contestants("none,spare", "8")


def test_budgets_that_come_to_the_same_counts_are_timed_once(subject):
    """36 visual tokens: half of them are 18, and more than all are all."""
    made = Benchmark.make(methods="norm,uniform", keep="0.5,18,9999,36,8")
    found = [one.label for one in made.distinct(subject).contestants[2:]]
    assert found == [f"{name} {keep}" for name in ("NormTopK", "UniformGrid") for keep in ("0.5", "9999", "8")]


def test_what_was_really_kept_names_the_arm(subject):
    made = Benchmark.make(methods="norm", keep="9999,8", repeats=1, warmup=0, new_tokens=1)
    data = made.measure(subject, Store())
    assert [row["label"] for row in data["cases"][0]["rows"][2:]] == ["NormTopK 36", "NormTopK 8"]
    assert not any("(" in speedup(row["speedup"]["end_to_end"]) for row in data["cases"][0]["rows"])  # one repeat
