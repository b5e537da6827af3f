"""The engines of the selecting methods against brute force in plain numpy, on inputs that hypothesis makes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate import InvalidBudget, InvalidFeatures, InvalidOption
from foveate.select import select_alternating, select_coverage, select_farthest, select_unlike

ENGINES = {
    "farthest": select_farthest,
    "coverage": select_coverage,
    "added": lambda rows, k: select_coverage(rows, k, weight=torch.ones(rows.shape[:-1]), combine="add"),
    "alternating": select_alternating,
}
NESTED = ("farthest", "coverage", "added")


@st.composite
def problems(draw, max_n=24):
    """Random rows (sometimes with duplicates, parallel ones, zero rows, low rank), weights, and k."""
    n, d = draw(st.integers(1, max_n)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = rng.standard_normal((n, d)) * np.exp(rng.uniform(-8, 8, (n, 1)))
    kind = draw(st.sampled_from(["plain", "duplicates", "zeros", "low rank", "all zero"]))
    if kind == "duplicates":
        rows = rows[rng.integers(0, n, n)]
    if kind == "zeros":
        rows[rng.random(n) < 0.3] = 0
    if kind == "low rank":
        rows = rows[:, :1] @ rows[:1]
    if kind == "all zero":
        rows = np.zeros((n, d))
    weight = rng.uniform(0, 2, n) * (rng.random(n) > draw(st.sampled_from([0.0, 0.3])))
    return torch.tensor(rows), torch.tensor(weight), draw(st.integers(1, n))


def cosine(a, b):
    """Of two vectors; 0 where one has no direction."""
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / lengths) if lengths > 0 else 0.0


def table(rows):
    return np.array([[cosine(a, b) for b in rows] for a in rows])


def farthest_scores(likeness, kept):
    """Distance to the nearest kept row, or before the first to the nearest other one."""
    n = len(likeness)
    return np.array(
        [min([1 - likeness[i, s] for s in (kept or set(range(n)) - {i})], default=2.0) for i in range(n)]
    )


@given(problems())
@settings(max_examples=100, deadline=None)
def test_every_step_of_farthest_takes_a_farthest_row(problem):
    features, _, k = problem
    rows = features.numpy()
    directed = [i for i in range(len(rows)) if rows[i].any()]
    order = select_farthest(features, k).tolist()
    assert len(set(order)) == k
    assert [i for i in order if i not in directed] == sorted(i for i in order if i not in directed)
    likeness = table(rows[directed])
    kept = []
    for chosen in order:
        scores = farthest_scores(likeness, kept)
        free = [i for i in range(len(directed)) if i not in kept]
        if chosen not in directed:  # zero rows come when nothing is left that is anywhere else
            assert max((scores[i] for i in free), default=0) < 1e-12
            continue
        best = max(scores[i] for i in free)
        at = directed.index(chosen)
        assert scores[at] > best - 1e-12
        assert not [i for i in free if i < at and scores[i] > scores[at] + 1e-12]
        kept.append(at)


@given(problems(), st.sampled_from(["multiply", "add"]))
@settings(max_examples=100, deadline=None)
def test_every_step_of_coverage_takes_a_row_that_covers_most(problem, combine):
    features, weight, k = problem
    likeness, weights, n = table(features.numpy()), weight.numpy(), len(features)
    order = select_coverage(features, k, weight=weight, combine=combine).tolist()
    assert len(set(order)) == k
    for step, chosen in enumerate(order):
        covered = [max([0.0, *(likeness[u, s] for s in order[:step])]) for u in range(n)]
        gains = np.array([sum(max(0.0, likeness[u, j] - covered[u]) for u in range(n)) for j in range(n)])
        scores = gains + weights if combine == "add" else gains * weights
        free = [j for j in range(n) if j not in order[:step]]
        assert scores[chosen] >= max(scores[free]) - 1e-11
        if max(scores[free]) < 1e-14:  # nothing is left to cover: by weight
            assert weights[chosen] >= max(weights[free]) - 1e-15


@given(problems(), st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_alternating_is_its_rounds_written_out(problem, step):
    features, _, k = problem
    rows = features.numpy()
    like = {(i, j): cosine(rows[i], rows[j]) for i in range(len(rows)) for j in range(len(rows))}
    for i, j in like:
        if not rows[j].any():
            like[i, j] = -1.0
        if not rows[i].any():
            like[i, j] = 1.0
    left = list(range(len(rows)))
    close = False
    while len(left) > k:
        a, b = left[::2], left[1::2]
        highest = {i: max(like[i, j] for j in b) for i in a}
        # Equal by rounding alone, here or there. Of copies of one row, rounding may choose either.
        alike = [(i, j) for i in a for j in a if abs(highest[i] - highest[j]) < 1e-12]
        close |= any((rows[i] != rows[j]).any() for i, j in alike)
        a = sorted(a, key=lambda i: -highest[i])
        left = a[min(step, len(left) - k) :] + b
    found = select_alternating(features, k, step).tolist()
    assert len(set(found)) == k
    if not close:
        assert rows[found].tolist() == rows[left].tolist()


@given(problems(), st.data())
@settings(max_examples=60, deadline=None)
def test_unlike_takes_the_lowest_cosines_of_what_is_free(problem, data):
    features = problem[0]
    rows = features.numpy()
    pivots = torch.arange(min(3, len(rows)))
    free = torch.ones(len(rows), dtype=torch.bool)
    free[pivots] = False
    counts = [data.draw(st.integers(0, int(free.sum()) // len(pivots))) for _ in pivots]
    groups = select_unlike(features, pivots, free, counts)
    assert int(free.sum()) == len(rows) - len(pivots)  # never changed
    rest = set(range(len(pivots), len(rows)))
    for pivot, group, count in zip(pivots.tolist(), groups, counts, strict=True):
        taken = set(group.tolist())
        assert len(taken) == count
        likeness = {i: cosine(rows[pivot], rows[i]) if rows[i].any() else 1.0 for i in rest}
        assert all(likeness[i] <= likeness[j] + 1e-12 for i in taken for j in rest - taken)
        assert taken <= rest
        rest -= taken


@pytest.mark.parametrize("name", NESTED)
@given(problems(), st.data())
@settings(max_examples=40, deadline=None)
def test_a_run_is_the_prefix_of_a_longer_one(name, problem, data):
    features, _, k = problem
    longer = data.draw(st.integers(k, len(features)))
    assert ENGINES[name](features, k).tolist() == ENGINES[name](features, longer)[:k].tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NESTED)
def test_a_batch_is_its_items_one_by_one(name, dtype):
    batch = torch.randn(3, 40, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    batch[1, 5:20] = batch[1, :1]
    batch[2, 7] = 0
    before = batch.clone()
    orders = ENGINES[name](batch, 30)
    assert orders.tolist() == [ENGINES[name](item, 30).tolist() for item in batch]
    assert torch.equal(batch, before)
    assert orders.dtype == torch.long
    assert ENGINES[name](batch[:0], 30).shape == (0, 30)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("rows", ["equal", "zero", "parallel"])
def test_ties_go_to_the_lowest_index(name, rows, dtype):
    features = torch.zeros(20, 6) if rows == "zero" else torch.ones(20, 6)
    features = features * torch.arange(1, 21)[:, None] if rows == "parallel" else features
    found = ENGINES[name](features.to(dtype), 7).tolist()
    if name in NESTED:
        assert found == list(range(7))
    assert len(set(found)) == 7


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("name", ENGINES)
def test_lengths_do_not_count_however_long(name, scale):
    features = torch.randn(30, 8, generator=torch.Generator().manual_seed(1))
    assert ENGINES[name](features * scale, 9).tolist() == ENGINES[name](features, 9).tolist()


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_raises(name, bad):
    features = torch.randn(6, 4)
    features[3, 2] = bad
    with pytest.raises(InvalidFeatures, match="finite"):
        ENGINES[name](features, 2)
    if name in NESTED:
        with pytest.raises(InvalidFeatures, match="finite"):
            ENGINES[name](torch.stack([torch.randn(6, 4), features]), 2)


@pytest.mark.parametrize("name", ENGINES)
def test_bad_counts_and_shapes_name_what_is_allowed(name):
    for k in (0, 7, -1, 2.0, True):
        with pytest.raises(InvalidBudget, match="allowed"):
            ENGINES[name](torch.randn(6, 4), k)
    for shape in ((6,), (0, 4), (6, 0)):
        with pytest.raises(InvalidFeatures, match="allowed"):
            ENGINES[name](torch.zeros(shape), 1)


def test_bad_weights_and_counts_raise():
    rows = torch.randn(6, 4)
    for weight in (-torch.ones(6), torch.ones(5), torch.full((6,), float("nan"))):
        with pytest.raises(InvalidFeatures, match="weight"):
            select_coverage(rows, 2, weight=weight)
    with pytest.raises(InvalidOption, match="combine"):
        select_coverage(rows, 2, combine="max")
    for counts in ([1], [3, 3], [-1, 1]):
        with pytest.raises(InvalidFeatures, match="counts"):
            select_unlike(rows, torch.tensor([0, 1]), torch.arange(6) > 1, counts)
