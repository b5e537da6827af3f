"""Properties of select_residual, against LAPACK and brute force on inputs that hypothesis makes."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from foveate import InvalidBudget, InvalidFeatures
from foveate.select import optimal_energy, residual_energy, select_residual


@st.composite
def problems(draw, max_n=24, max_d=12):
    """Random features (sometimes with duplicates, zero rows, low rank) and weights."""
    n, d = draw(st.integers(1, max_n)), draw(st.integers(1, max_d))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    features = rng.standard_normal((n, d)) * np.exp(rng.uniform(-2, 2, (n, 1)))
    kind = draw(st.sampled_from(["plain", "duplicates", "zeros", "low rank"]))
    if kind == "duplicates":
        features = features[rng.integers(0, n, n)]
    if kind == "zeros":
        features[rng.random(n) < 0.3] = 0
    if kind == "low rank":
        features = features[:, :1] @ features[:1]
    weight = rng.uniform(0, 2, n) * (rng.random(n) > draw(st.sampled_from([0.0, 0.3])))
    k = draw(st.integers(1, n))
    return torch.tensor(features), torch.tensor(weight), k


def scores_by_least_squares(features, weight, kept):
    """w_i * ||v_i - P_S v_i||^2 by numpy's SVD-based least squares on unit rows."""
    rows = features.numpy()
    basis = rows[kept]
    norms = np.linalg.norm(basis, axis=1, keepdims=True)
    basis = basis[norms[:, 0] > 0] / norms[norms[:, 0] > 0]
    if len(basis):
        rows = rows - (basis.T @ np.linalg.lstsq(basis.T, rows.T, rcond=1e-12)[0]).T
    return weight.numpy() * (rows**2).sum(axis=1)


@given(problems())
@settings(max_examples=150, deadline=None)
def test_every_step_takes_a_best_row(problem):
    features, weight, k = problem
    order = select_residual(features, k, weight=weight).tolist()
    assert len(set(order)) == k
    noise = weight.numpy() * (features.numpy() ** 2).sum(axis=1)
    for step, chosen in enumerate(order):
        scores = scores_by_least_squares(features, weight, order[:step])
        scores[order[:step]] = 0
        assert scores[chosen] >= scores.max() - 1e-10 * noise.max()


@given(problems(max_n=40, max_d=40))
@settings(max_examples=100, deadline=None)
def test_equals_lapack_pivoted_qr_where_margins_are_clear(problem):
    features, weight, k = problem
    scaled = features * weight.sqrt()[:, None]
    r, pivots = scipy.linalg.qr(scaled.numpy().T, mode="r", pivoting=True)
    order = select_residual(features, k, weight=weight).numpy()
    for step in range(min(k, *features.shape)):
        tail = (r[step:, step:] ** 2).sum(axis=0)
        rivals = np.delete(tail, 0)
        noise = 1e-9 * (scaled.numpy() ** 2).sum(axis=1).max()
        if (len(rivals) and tail[0] - rivals.max() <= noise) or tail[0] <= noise:
            break
        assert order[step] == pivots[step]


@given(problems())
@settings(max_examples=50, deadline=None)
def test_a_shorter_run_is_a_prefix(problem):
    features, weight, k = problem
    longest = select_residual(features, len(features), weight=weight)
    assert select_residual(features, k, weight=weight).tolist() == longest[:k].tolist()


@given(st.integers(1, 4), st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_a_batch_equals_its_items(batch, seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, 17, 9, generator=generator)
    weight = torch.rand(batch, 17, generator=generator)
    first = torch.randint(0, 17, (batch,), generator=generator)
    together = select_residual(features, 6, weight=weight, first=first)
    alone = [select_residual(f, 6, weight=w, first=s) for f, w, s in zip(features, weight, first, strict=True)]
    assert together.tolist() == [order.tolist() for order in alone]
    assert together.shape == (batch, 6)
    assert together.dtype == torch.long


@given(problems(), st.floats(1e-3, 1e3))
@settings(max_examples=50, deadline=None)
def test_scaling_everything_changes_nothing(problem, scale):
    features, weight, k = problem
    scale = 2.0 ** round(np.log2(scale))  # exact in floating point
    order = select_residual(features, k, weight=weight)
    assert select_residual(features * scale, k, weight=weight * scale).tolist() == order.tolist()


@given(problems())
@settings(max_examples=50, deadline=None)
def test_energy_falls_and_is_never_under_the_optimum(problem):
    features, weight, k = problem
    assume(bool((features != 0).any()))
    energy = residual_energy(features, select_residual(features, k, weight=weight))
    assert energy[0] == 1
    assert bool((energy.diff() <= 1e-12).all())
    assert bool((energy >= optimal_energy(features, k) - 1e-10).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_computed_in_float32(dtype):
    features = torch.randn(200, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = features.clone()
    order = select_residual(features, 48)
    assert order.tolist() == select_residual(features.float(), 48).tolist()
    assert torch.equal(features, before)


def test_exact_ties_go_to_the_lowest_index():
    assert select_residual(torch.eye(6), 6).tolist() == [0, 1, 2, 3, 4, 5]
    assert select_residual(torch.ones(5, 3), 5).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_identical_rows_the_first_is_taken(dtype):
    rows = torch.randn(100, 64, dtype=dtype, generator=torch.Generator().manual_seed(1))
    order = select_residual(torch.cat([rows, rows, rows[:7]]), 32)
    assert order.max() < 100
    assert order.tolist() == select_residual(rows, 32).tolist()


def test_when_all_is_explained_the_rest_is_filled_by_weight_then_index():
    features = torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0], [0, 0]])
    weight = torch.tensor([1.0, 3, 3, 2, 5])
    assert select_residual(features, 5, weight=weight).tolist() == [3, 4, 1, 2, 0]
    assert select_residual(torch.zeros(3, 2), 2).tolist() == [0, 1]
    assert select_residual(torch.ones(3, 2), 3, weight=torch.tensor([0.0, 0, 1])).tolist() == [2, 0, 1]


def test_first_is_taken_first_even_if_it_adds_nothing():
    features = torch.tensor([[0.0, 0], [1, 0], [0, 2]])
    assert select_residual(features, 3, first=0).tolist() == [0, 2, 1]
    assert select_residual(features, 2, first=torch.tensor(1)).tolist() == [1, 2]


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_extreme_magnitudes_neither_overflow_nor_vanish(scale):
    features = torch.randn(30, 8, generator=torch.Generator().manual_seed(2))
    expected = select_residual(features.double() * scale, 8).tolist()
    assert select_residual(features * scale, 8).tolist() == expected


def test_cancellation_does_not_mislead_single_precision():
    """Rows that differ in the fourth digit: energies kept by subtraction alone would be rounding noise."""
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(1, 32, generator=generator) + 1e-4 * torch.randn(60, 32, generator=generator)
    single, double = features, features.double()
    optimum = residual_energy(double, select_residual(double, 24))[-1]
    assert residual_energy(double, select_residual(single, 24))[-1] <= 1.05 * optimum


def test_a_rival_that_cancellation_hid_is_still_found():
    """Huge rows along one direction next to small ones: what is left of the huge ones decides."""
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        direction = torch.nn.functional.normalize(torch.randn(1, 16, generator=generator))
        lengths = 1e4 * (1 + torch.rand(20, 1, generator=generator))
        huge = lengths * direction + 0.6 * torch.randn(20, 16, generator=generator)
        small = 0.5 * torch.randn(20, 16, generator=generator)
        features = torch.cat([huge, small])
        assert select_residual(features, 6).tolist() == select_residual(features.double(), 6).tolist()


def test_rows_of_all_magnitudes_count():
    features = torch.diag(torch.tensor([1e-14, 1e12, 1e-13, 1e-12]))
    assert select_residual(features, 4).tolist() == [1, 3, 2, 0]


def test_weights_of_all_magnitudes_count():
    tiny = torch.tensor([1e-60, 1e-50, 1e-55, 0], dtype=torch.float64)
    assert select_residual(torch.eye(4), 4, weight=tiny).tolist() == [1, 2, 0, 3]
    huge = torch.tensor([1, 1e100, 1e200], dtype=torch.float64)
    assert select_residual(torch.eye(3), 3, weight=huge).tolist() == [2, 1, 0]


def test_the_energy_left_is_right_far_below_single_precision():
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(1, 16, generator=generator) + 1e-5 * torch.randn(40, 16, generator=generator)
    energy = residual_energy(features, select_residual(features, 16))
    assert energy[-1] < 1e-15
    assert bool((energy >= optimal_energy(features, 16) - 1e-15).all())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_features_raise(value):
    features = torch.randn(5, 4)
    features[3, 2] = value
    for call in (
        lambda: select_residual(features, 2),
        lambda: residual_energy(features, torch.tensor([0])),
        lambda: optimal_energy(features, 2),
    ):
        with pytest.raises(InvalidFeatures, match="finite"):
            call()


@pytest.mark.parametrize("k", [0, -1, 6, 2.0, True])
def test_k_out_of_range_raises(k):
    with pytest.raises(InvalidBudget, match="1 to the 5"):
        select_residual(torch.randn(5, 4), k)


@pytest.mark.parametrize(
    "keywords",
    [
        {"weight": torch.ones(4)},
        {"weight": torch.tensor([1.0, 1, -1, 1, 1])},
        {"weight": torch.tensor([1.0, 1, float("nan"), 1, 1])},
        {"first": 5},
        {"first": -1},
        {"first": 1.7},
        {"first": torch.tensor([0, 1])},
        {"weight": [1, 1, 1, 1, 1]},
    ],
)
def test_bad_weights_and_firsts_raise(keywords):
    with pytest.raises(InvalidFeatures):
        select_residual(torch.randn(5, 4), 2, **keywords)


def test_arguments_that_are_no_tensors_or_indices_raise():
    with pytest.raises(InvalidFeatures, match="tensor"):
        select_residual(np.ones((3, 2)), 1)
    with pytest.raises(InvalidFeatures, match="integers"):
        residual_energy(torch.randn(4, 2), torch.tensor([0.5]))
    with pytest.raises(InvalidFeatures, match="0 to 3"):
        residual_energy(torch.randn(4, 2), torch.tensor([4]))
    with pytest.raises(InvalidBudget, match="int"):
        optimal_energy(torch.randn(4, 2), 1.5)
    for call in (residual_energy, optimal_energy):
        with pytest.raises(InvalidFeatures, match="shape"):
            call(torch.randn(0, 2), torch.tensor([0]))


@pytest.mark.parametrize("shape", [(4,), (0, 3), (3, 0), (1, 2, 3, 4)])
def test_bad_shapes_raise(shape):
    with pytest.raises(InvalidFeatures, match="shape"):
        select_residual(torch.randn(shape), 1)
