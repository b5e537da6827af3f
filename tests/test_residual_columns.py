"""The fast implementations of select_residual against the reference and against explicit least squares."""

import statistics
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.errors import InvalidOption
from foveate.select import residual_energy, select_residual
from residual_problems import KINDS, certify, features_of, problems


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


@pytest.mark.parametrize("seed", range(6))
def test_a_shorter_run_is_a_prefix_where_all_steps_are_ties(seed):
    """A simplex far from the origin, rotated: every choice is rounding, and the same for all k."""
    generator = torch.Generator().manual_seed(seed)
    turned = torch.linalg.qr(torch.randn(300, 300, generator=generator)).Q
    features = (torch.eye(300) + 0.2)[:200] @ turned
    longest = select_residual(features, 200).tolist()
    for k in (5, 40, 66, 67, 120):
        assert select_residual(features, k).tolist() == longest[:k]


@pytest.mark.parametrize("tiny", [1e-78, 1e-160, 1e-300])
@pytest.mark.parametrize("impl", ["reference", "columns"])
def test_rows_of_hardly_any_length_beside_ordinary_ones(tiny, impl):
    rows = torch.eye(140, dtype=torch.float64)
    rows[2] *= tiny
    assert select_residual(rows, 139, impl=impl).tolist() == [0, 1, *range(3, 140)]


@pytest.mark.parametrize("impl", ["reference", "columns"])
def test_equal_lengths_are_equal_in_every_layout(impl):
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(8192, generator=generator)
    rows = torch.stack([row[torch.randperm(8192, generator=generator)] for _ in range(64)])
    expected = select_residual(rows, 20, impl=impl).tolist()
    assert expected[0] == 0
    assert select_residual(rows.T.contiguous().T, 20, impl=impl).tolist() == expected


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
