"""The fast implementations of select_residual against the reference and against explicit least squares."""

import statistics
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.errors import InvalidOption
from foveate.select import residual_energy, select_residual

KINDS = ["plain", "duplicates", "zeros", "low rank", "range", "alike"]
# Energies are certain to sqrt(eps) of the row's own; where less is left, they are computed afresh.
TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-3}


def features_of(kind, n, d, seed):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, d)) * np.exp(rng.uniform(-1, 1, (n, 1)))
    if kind == "duplicates":
        rows = rows[rng.integers(0, n, n)]
    if kind == "zeros":
        rows[rng.random(n) < 0.3] = 0
    if kind == "low rank":
        rank = 1 + int(rng.integers(0, max(1, min(n, d) // 2)))
        rows = rng.standard_normal((n, rank)) @ rows[:rank]
    if kind == "range":
        rows *= 10.0 ** rng.uniform(-5, 5, (n, 1))
    if kind == "alike":
        rows = rows[:1] + 10.0 ** rng.uniform(-3, 0) * rows
    return torch.tensor(rows)


@st.composite
def problems(draw, sizes, widths):
    """Features of all kinds, weights with zeros among them, a count and sometimes a row to start with."""
    n, d = draw(sizes), draw(widths)
    seed = draw(st.integers(0, 2**32 - 1))
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    features = features_of(draw(st.sampled_from(KINDS)), n, d, seed).to(dtype)
    rng = np.random.default_rng(seed)
    weight = rng.uniform(0, 1, n) ** draw(st.sampled_from([0, 1, 6])) * (
        rng.random(n) >= draw(st.sampled_from([0, 0.3]))
    )
    first = draw(st.none() | st.integers(0, n - 1))
    return features, torch.tensor(weight), draw(st.integers(1, n)), first


def left_by_least_squares(features, kept):
    """||v_i - P_S v_i||^2 in double, by numpy's SVD of the kept rows at length 1."""
    rows = features.double().numpy()
    norms = np.linalg.norm(rows[kept], axis=1, keepdims=True)
    basis = rows[kept][norms[:, 0] > 0] / norms[norms[:, 0] > 0]
    if len(basis):
        _, sizes, directions = np.linalg.svd(basis, full_matrices=False)
        directions = directions[sizes > 1e-13 * sizes[0]]
        for _ in range(2):
            rows = rows - (rows @ directions.T) @ directions
    return (rows**2).sum(axis=1)


def certify(features, weight, order, first, steps):
    """At each of the steps, the row taken is within rounding of the best."""
    assert len(set(order)) == len(order)
    own = (features.double().numpy() ** 2).sum(axis=1)
    eps, weight = torch.finfo(features.dtype).eps, weight.numpy()
    for step in steps:
        if step == 0 and first is not None:
            assert order[0] == first
            continue
        scores = weight * left_by_least_squares(features, order[:step])
        scores[order[:step]] = 0
        rounding = 1e4 * eps**2 * (weight * own).max()
        certain = scores - weight * (200 * eps) ** 2 * own  # what may be rounding of the row itself
        assert scores[order[step]] >= certain.max() * (1 - TOLERANCE[features.dtype]) - rounding


@given(problems(st.integers(1, 40), st.integers(1, 24)))
@settings(max_examples=200, deadline=None)
def test_every_step_takes_a_best_row(problem):
    features, weight, k, first = problem
    order = select_residual(features, k, weight=weight, first=first).tolist()
    certify(features, weight, order, first, range(k))


@given(problems(st.integers(130, 260), st.sampled_from([8, 90, 300])))
@settings(max_examples=40, deadline=None)
def test_every_step_takes_a_best_row_over_several_panels_and_with_the_whole_gram_matrix(problem):
    features, weight, k, first = problem
    order = select_residual(features, k, weight=weight, first=first).tolist()
    certify(features, weight, order, first, range(0, k, max(1, k // 12)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [20, 60, 150])
def test_equals_the_reference(kind, k):
    for seed in range(3):
        features = features_of(kind, 200, 256, seed)
        weight = torch.rand(200, generator=torch.Generator().manual_seed(seed))
        expected = select_residual(features, k, weight=weight, impl="reference")
        assert select_residual(features, k, weight=weight, impl="columns").tolist() == expected.tolist()
        single = select_residual(features.float(), k, weight=weight, impl="columns")
        paths = [residual_energy(features, order) for order in (single, expected)]
        assert torch.allclose(*paths, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["plain", "duplicates", "alike"])
def test_a_shorter_run_is_a_prefix_though_it_computes_less(kind):
    features = features_of(kind, 300, 128, 7)
    longest = select_residual(features, 300).tolist()
    for k in (1, 31, 33, 64, 99, 101, 200):
        assert select_residual(features, k).tolist() == longest[:k]


@pytest.mark.parametrize("impl", ["reference", "columns"])
def test_a_batch_equals_its_items_and_inputs_stay(impl):
    features = torch.stack([features_of(kind, 150, 64, 1) for kind in KINDS]).float().requires_grad_()
    before = features.detach().clone()
    weight = torch.rand(len(KINDS), 150, generator=torch.Generator().manual_seed(0)).requires_grad_()
    together = select_residual(features, 70, weight=weight, impl=impl)
    alone = [select_residual(f, 70, weight=w, impl=impl) for f, w in zip(features, weight, strict=True)]
    assert torch.equal(together, torch.stack(alone))
    assert torch.equal(features.detach(), before)


def test_rows_need_not_be_contiguous():
    features = features_of("plain", 64, 180, 0).float()
    assert torch.equal(select_residual(features.T, 90), select_residual(features.T.contiguous(), 90))


def test_an_unknown_or_impossible_implementation_raises():
    with pytest.raises(InvalidOption, match="auto, reference, columns"):
        select_residual(torch.eye(3), 1, impl="fast")
    with pytest.raises(InvalidOption, match="CPU"):
        select_residual(torch.empty(3, 3, device="meta"), 1, impl="columns")


def test_it_is_faster_than_deflating_the_residual_matrix():
    features = features_of("plain", 576, 1024, 0).float()

    def deflating():
        residual = features.clone()
        for _ in range(64):
            index = int(torch.linalg.vector_norm(residual, dim=1).argmax())
            direction = residual[index] / residual[index].norm()
            residual.addr_(residual @ direction, direction, alpha=-1)

    ratios = []
    for _ in range(5):
        times = []
        for run in (deflating, lambda: select_residual(features, 64)):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        ratios.append(times[0] / times[1])
    assert statistics.median(ratios) > 2
