"""Groups of images are ranked as their images one by one, without a word from the host."""

import random
import threading
import warnings
from dataclasses import dataclass, fields, replace
from math import prod
from typing import ClassVar

import numpy as np
import pytest
import torch

from counting import counted
from foveate import METHODS, EachImage, InvalidBudget, InvalidFeatures, InvalidOption, MissingSignal, VisualTokens
from foveate.methods import Merging, Resizing
from foveate.methods.selecting import residual
from foveate.select import (
    select_alternating,
    select_coverage,
    select_farthest,
    select_residual,
    select_unlike,
)
from foveate.select.checks import Undecided, deferred, is_no_selection, read_together, refuse_if
from foveate.tokens import TENSORS

GRID, N = (6, 8), 48
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
RANKING = {name: kind for name, kind in METHODS.items() if not issubclass(kind, EachImage)}
METHODS_AND_OPTIONS = [
    *(kind() for kind in METHODS.values()),
    *(METHODS["spare"](relevance=space, sign=sign) for space in ("llm", "clip") for sign in "-+"),
    *(
        METHODS["resprune"](pool=pool, seed=seed)
        for pool in ("max", "mean", "pooled")
        for seed in ("norm", "none")
    ),
    *(METHODS["relevance"](pool=pool) for pool in ("mean", "pooled")),
    *(METHODS["cdpruner"](space, sign) for space in ("llm", "clip") for sign in "-+"),
    *(
        METHODS["scope"](**options)
        for options in ({"combine": "add", "heads": 4}, {"states": "tokens"}, {"alpha": 0})
    ),
    *(METHODS["vispruner"](important=share, attention="received") for share in (0, 1)),
    *(METHODS["dart"](image_pivots=3, text_pivots=count) for count in (1, 2)),
]


def group(count, seed=0, dtype=torch.float32, d=16, asked=True):
    """``count`` images of one grid with every signal; their questions have 4, 1, 0, 3, 2, ... nouns."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(count, *shape, generator=generator)

    lengths = torch.tensor([(4, 1, 0, 3, 2)[number % 5] for number in range(count)])
    return VisualTokens(
        features=normal(N, d).to(dtype),
        grids=(GRID,),
        family="llava",
        cls_attention=normal(N).abs(),
        received_attention=normal(N).abs(),
        joint_attention=normal(N).abs(),
        question=normal(4, d).to(dtype),
        asked=torch.arange(4) < lengths[:, None] if asked else None,
        clip_relevance=normal(N) / 10 * (torch.arange(count) != 2)[:, None],
        patches=normal(N, d + 3).to(dtype),
        keys=normal(N, 2, 4).to(dtype),
    )


def of_few(tokens, rows):
    """Each image with copies of ``rows`` of its tokens alone: ties everywhere."""
    places = torch.arange(N) % rows
    names = ("features", "cls_attention", "received_attention", "clip_relevance", "patches", "keys")
    return replace(tokens, **{name: getattr(tokens, name)[:, places] for name in names})


KINDS = {
    "plain": lambda tokens: tokens,
    "duplicates": lambda tokens: of_few(tokens, 7),
    "ties": lambda tokens: of_few(tokens, 1),
    "zeros": lambda tokens: replace(
        tokens,
        features=tokens.features * (torch.arange(N) % 3 > 0)[:, None],
        patches=tokens.patches * (torch.arange(N) % 2)[:, None],
        cls_attention=tokens.cls_attention * 0,
    ),
    "no question": lambda tokens: replace(
        tokens, question=tokens.question[:, :0], asked=None, clip_relevance=tokens.clip_relevance[:, :0]
    ),
    "nobody asks": lambda tokens: replace(
        tokens, asked=torch.zeros_like(tokens.asked), clip_relevance=tokens.clip_relevance * 0
    ),
}


def named(method):
    options = (f"{field.name}={getattr(method, field.name)}" for field in fields(method))
    return f"{type(method).__name__}({','.join(options)})"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS_AND_OPTIONS, ids=named)
def test_a_group_is_ranked_as_its_images_one_by_one(method, kind):
    cases = ((1, 1), (5, 17), (2, 13), (2, N))
    for number, ((count, k), dtype) in enumerate(zip(cases, DTYPES, strict=True)):
        tokens = KINDS[kind](group(count, seed=number, dtype=dtype))
        together = method.rank(tokens, k)
        alone = [method.rank(image, k) for image in tokens.each()]
        expected = prod(method.size(GRID, k)) if isinstance(method, Resizing) else k
        assert together.dtype == torch.long
        assert together.shape == (count, expected)
        assert together.tolist() == [order.tolist() for order in alone]
        assert not is_no_selection(together, N).any()
        if isinstance(method, Merging):
            merged = torch.stack([method.merge(image, k) for image in tokens.each()])
            assert torch.allclose(method.merge(tokens, k), merged, rtol=1e-5, atol=1e-6)


def test_other_images_change_a_group_s_choice():
    """A control: the comparison tells images apart."""
    tokens = group(2)
    for method in METHODS_AND_OPTIONS:
        first, second = method.rank(tokens, 13).tolist()
        of_places = type(method).__name__ in ("UniformGrid", "Random", "AveragePool", "DownsampledImage", "ToMe")
        assert of_places or first != second, method


ENGINES = {
    "farthest": select_farthest,
    "coverage": lambda rows, k: select_coverage(rows, k, weight=rows.double().abs().sum(dim=-1)),
    "added": lambda rows, k: select_coverage(rows, k, weight=rows.double().abs().sum(dim=-1), combine="add"),
    "alternating": select_alternating,
    "residual": lambda rows, k: select_residual(
        rows, k, weight=rows.double().square().sum(dim=-1), first=rows.double().sum(dim=-1).argmax(dim=-1)
    ),
    "reference": lambda rows, k: select_residual(rows, k, impl="reference"),
    "unlike": lambda rows, k: torch.cat(
        select_unlike(
            rows,
            torch.tensor([3, 1]).expand(*rows.shape[:-2], 2),
            torch.ones(rows.shape[:-1], dtype=torch.bool),
            [k - k // 2, k // 2],
        ),
        dim=-1,
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["plain", "duplicates", "ties", "zeros"])
@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_takes_a_batch_as_its_items_one_by_one(name, kind, dtype):
    for count in (1, 2, 5):
        for n, d in ((48, 16), (9, 3), (1, 2)):
            rows = torch.randn(count, n, d, generator=torch.Generator().manual_seed(n)).to(dtype)
            rows = rows[:, torch.arange(n) % {"duplicates": 5, "ties": 1}.get(kind, n)]
            rows = rows * (torch.arange(n) % 3 > 0)[:, None] if kind == "zeros" else rows
            if name == "unlike" and n < 4:
                continue
            for k in {1, (n + 1) // 2, n}:
                together = ENGINES[name](rows, k)
                assert together.tolist() == [ENGINES[name](item, k).tolist() for item in rows]


def test_many_rows_are_dropped_in_the_rounds_of_few(monkeypatch):
    for kind in ("plain", "clustered", "zeros"):
        rows = torch.randn(1, 400, 16, generator=torch.Generator().manual_seed(1))
        rows = rows[:, torch.arange(400) % 23] + 0.01 * rows if kind == "clustered" else rows
        rows = rows * (torch.arange(400) % 4 > 0)[:, None] if kind == "zeros" else rows
        expected = select_alternating(rows, 9)
        with monkeypatch.context() as patch:
            patch.setattr("foveate.select.alternating.MANY", 64)
            for neighbours in (2, 64):
                patch.setattr("foveate.select.alternating.NEIGHBOURS", neighbours)
                assert torch.equal(select_alternating(rows, 9), expected)
                assert torch.equal(select_alternating(rows[0], 9), expected[0])


# What is asked of the device.


def cost(monkeypatch, method, tokens, k=13):
    with deferred() as checks, counted(monkeypatch, (residual, "select_residual")) as count:
        method.rank(tokens, k)
    checks.raise_any()
    return count


@pytest.mark.parametrize("name", RANKING)
def test_a_group_costs_the_operations_of_one_image_and_reads_nothing(name, monkeypatch):
    method = METHODS[name]()
    counts = [cost(monkeypatch, method, group(images)) for images in (1, 8)]
    assert [count.reads for count in counts] == [0, 0]
    assert counts[0].ops == counts[1].ops


@pytest.mark.parametrize("name", [name for name in METHODS if name not in RANKING])
def test_methods_that_go_image_by_image_read_nothing_but_questions(name, monkeypatch):
    if name == "prumergeplus":
        assert cost(monkeypatch, METHODS[name](), replace(group(2), asked=None)).reads == 0
    assert cost(monkeypatch, METHODS[name](), group(2, asked=False)).reads == 0


LLM = {"relevance": "llm"}


@pytest.mark.parametrize(
    ("name", "options", "most"),
    [("spare", LLM, 23), ("resprune", {}, 17), ("cdpruner", LLM, 25), ("rrqr", {}, 1)],
)
def test_weights_take_few_operations(name, options, most, monkeypatch):
    assert cost(monkeypatch, METHODS[name](**options), group(8)).ops <= most
    assert cost(monkeypatch, METHODS[name](**options), group(1, asked=False)).ops <= most - 2 * (most > 1)


def test_reads_and_operations_are_seen(monkeypatch):
    """A control of the counting itself."""
    with counted(monkeypatch) as count:
        rows = torch.ones(4) * 2
        rows.tolist(), rows[rows > 1], bool(rows.any()), float(rows[0]), rows.nonzero()
    assert count.reads == 5
    assert count.ops >= 4


# Checks that are read later.


def spoiled(tokens, field, value):
    changed = getattr(tokens, field).clone()
    changed[(-1, 3, *(0 for _ in changed.shape[2:]))] = value
    return replace(tokens, **{field: changed})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1.0])
@pytest.mark.parametrize("field", ["features", "cls_attention", "clip_relevance", "question", "patches", "keys"])
def test_what_means_nothing_is_refused_when_checks_are_read_as_where_they_arise(field, value):
    tokens = spoiled(group(2, asked=False), field, value)
    for method in METHODS_AND_OPTIONS:
        try:
            expected = method.rank(tokens, 13).tolist()
        except InvalidFeatures as error:
            expected = str(error)
        with deferred() as checks:
            order = method.rank(tokens, 13)
        assert order.shape == (2, 13 if not isinstance(method, Resizing) else order.shape[1])
        assert 0 <= order.min() <= order.max() < N
        if isinstance(expected, str):
            with pytest.raises(InvalidFeatures, match="allowed"):
                checks.raise_any()
        else:
            checks.raise_any()
            assert order.tolist() == expected


@pytest.mark.parametrize("name", ENGINES)
def test_engines_finish_on_rows_that_mean_nothing(name):
    for value in (float("nan"), float("inf"), -float("inf")):
        rows = torch.randn(2, 12, 4)
        rows[1, 3, 2] = value
        with deferred() as checks:
            order = ENGINES[name](rows, 7)
        assert order.shape == (2, 7)
        assert 0 <= order.min() <= order.max() < 12
        with pytest.raises(InvalidFeatures, match="allowed"):
            checks.raise_any()


def test_a_faithful_method_refuses_later_too():
    tokens = of_few(group(2), 5)
    for name in ("dpp", "cdpruner", "divprune"):
        with deferred() as checks:
            METHODS[name](faithful=True).rank(tokens, 9)
        with pytest.raises(InvalidBudget, match="k=9"):
            checks.raise_any()


def test_checks_are_read_together_and_the_first_that_holds_is_raised(monkeypatch):
    with deferred() as checks:
        refuse_if(torch.tensor(False), lambda: ValueError("none"))
        refuse_if(torch.tensor([[False, True]]), lambda: ValueError("first"))
        refuse_if(torch.tensor(True), lambda: ValueError("second"))
    with pytest.raises(ValueError, match="first"), counted(monkeypatch) as count:
        checks.raise_any()
    assert count.reads == 1
    checks.raise_any()  # all have been read
    with pytest.raises(ValueError, match="at once"):
        refuse_if(torch.tensor(True), lambda: ValueError("at once"))


def test_another_thread_s_checks_are_its_own():
    raised = []

    def other():
        try:
            refuse_if(torch.tensor(True), lambda: ValueError("here"))
        except ValueError as error:
            raised.append(str(error))

    with deferred() as checks:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert raised == ["here"]
    checks.raise_any()


def test_an_undecided_choice_is_made_again_where_reads_are_allowed():
    runs = []

    def work():
        runs.append(True)
        refuse_if(torch.tensor(len(runs) == 1), lambda: Undecided("by rounding"))
        return len(runs)

    assert read_together(work) == 2


@pytest.mark.parametrize(
    ("order", "wrong"), [([2, 0, 1], False), ([1, 1, 0], True), ([0, 1, 3], True), ([-1, 0, 1], True)]
)
def test_a_selection_holds_distinct_indices_in_range(order, wrong):
    assert is_no_selection(torch.tensor([[0, 1, 2], order]), 3).tolist() == [False, wrong]


# Groups and images.


@dataclass(frozen=True)
class First(EachImage):
    """A user's own method, of one image."""

    source: ClassVar[str] = "test"
    complexity: ClassVar[str] = "O(1)"

    def rank_one(self, tokens, k):
        assert tokens.features.dim() == 2
        assert tokens.asked is None or tokens.asked.all()
        return (torch.arange(k) + len(tokens.question)) % N


def test_a_method_of_one_image_is_called_for_each_and_sees_its_own_question():
    orders = First().rank(group(3), 2)
    assert orders.tolist() == [[4, 5], [1, 2], [0, 1]]
    assert First().rank(group(1).each()[0], 2).tolist() == [4, 5]


WRONG = {
    "NoneType": [None] * 3,
    "list": [[0, 1]] * 3,
    "ndarray": [np.arange(2)] * 3,
    r"\[2\] and \[1\]": [torch.arange(2), torch.arange(1), torch.arange(2)],
    r"\[2\] and NoneType": [torch.arange(2), torch.arange(2), None],
}


@pytest.mark.parametrize("words", WRONG)
def test_a_method_of_one_image_that_gives_something_else_is_told_so(words):
    given = iter(WRONG[words])

    class Careless(First):
        def rank_one(self, tokens, k):
            return next(given)

    with pytest.raises(InvalidOption, match=f"Careless.rank_one gave {words} for k=2: allowed are"):
        Careless().rank(group(3), 2)


def test_each_image_of_a_group_has_its_own_signals():
    tokens = group(3)
    for number, image in enumerate(tokens.each()):
        for name in set(TENSORS) - {"locked", "question", "asked"}:
            assert torch.equal(getattr(image, name), getattr(tokens, name)[number])
        real = tokens.asked[number]
        assert torch.equal(image.question, tokens.question[number][real])
        assert (image.grids, image.family, image.asked) == (tokens.grids, "llava", None)
        assert image.each() == [image]


def test_a_faithful_cdpruner_needs_a_question_of_every_image():
    tokens = group(3)
    with pytest.raises(InvalidFeatures, match="everywhere"):
        METHODS["cdpruner"](faithful=True).rank(tokens, 3)
    with pytest.raises(MissingSignal, match="empty"):
        METHODS["cdpruner"](faithful=True).rank(replace(tokens, clip_relevance=tokens.clip_relevance[:, :0]), 3)


# What surrounds a call.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS_AND_OPTIONS, ids=named)
def test_autocast_changes_no_choice_and_no_merged_token(method, dtype):
    for tokens in (group(2), group(2).each()[0], group(2, dtype=torch.bfloat16)):
        order, merged = method.rank(tokens, 13), isinstance(method, Merging) and method.merge(tokens, 13)
        with torch.autocast("cpu", dtype=dtype):
            assert torch.equal(method.rank(tokens, 13), order)
            if isinstance(method, Merging):
                assert torch.equal(method.merge(tokens, 13), merged)
            assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ENGINES)
def test_autocast_changes_no_engine(name, dtype):
    rows = torch.randn(2, 48, 16, generator=torch.Generator().manual_seed(0))
    expected = ENGINES[name](rows, 20)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(ENGINES[name](rows, 20), expected)


def test_autocast_would_change_what_runs_in_it():
    """A control: the same product without the guard."""
    rows = torch.randn(48, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (rows @ rows.T).dtype == torch.bfloat16


def test_a_call_leaves_all_global_state_as_it_was():
    def state():
        return (
            random.getstate(),
            [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
            torch.get_rng_state().tolist(),
            (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()),
            list(warnings.filters),
        )

    tokens = group(2)
    before = state()
    for method in METHODS_AND_OPTIONS:
        method.rank(tokens, 13)
        if isinstance(method, Merging):
            method.merge(tokens, 13)
    for engine in ENGINES.values():
        engine(tokens.features, 13)
    assert state() == before
