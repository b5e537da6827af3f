"""The Triton implementation of select_residual: on a GPU where there is one, else in Triton's interpreter."""

import contextlib
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.errors import InvalidFeatures, InvalidOption
from foveate.select import select_residual
from foveate.select.checks import Undecided, deferred, read_together
from residual_problems import KINDS, certify, features_of, problems

residual_triton = pytest.importorskip("foveate.select.residual.triton", reason="Triton is not installed")
from foveate.select.residual import kernel as residual_kernel  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
gpu = [pytest.mark.gpu, pytest.mark.skipif(DEVICE == "cpu", reason="no GPU: the interpreter is tested instead")]
TOO_OLD = tuple(map(int, residual_triton.triton.__version__.split(".")[:2])) < residual_triton.LOWEST
pytestmark = [
    pytest.mark.skipif(TOO_OLD, reason="this Triton is refused"),
    pytest.mark.skipif(DEVICE == "cpu" and not residual_triton.INTERPRETED, reason="no GPU and no interpreter"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # the interpreter is numpy, and numpy warns of overflow
]


def both(features, k, **options):
    """Orders of the kernel and of the reference."""
    features = features.to(DEVICE)
    orders = [select_residual(features, k, impl=impl, **options) for impl in ("triton", "reference")]
    return [order.tolist() for order in orders]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 7, 575])
def test_awkward_shapes_and_dtypes(n, dtype):
    features = features_of("plain", n, 19, n).to(dtype)
    found, expected = both(features, min(n, 9))
    assert found == expected


@pytest.mark.parametrize(("n", "d", "k"), [(576, 80, 66), (1023, 20, 5), (1100, 37, 34), (2880, 20, 4)])
def test_large_shapes_and_several_panels(n, d, k):
    found, expected = both(features_of("plain", n, d, n).float(), k)
    assert found == expected


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_weights_and_firsts(kind):
    features = features_of(kind, 70, 80, 1)
    weight = torch.rand(70, generator=torch.Generator().manual_seed(0)) * (torch.arange(70) % 4 > 0)
    found, expected = both(features.float(), 67)
    assert found == expected
    found, expected = both(features, 36, first=8, weight=weight.to(DEVICE))
    assert found == expected


@given(problems(st.integers(1, 30), st.integers(1, 20)))
@settings(max_examples=30, deadline=None)
def test_every_step_takes_a_best_row(problem):
    features, weight, k, first = problem
    order = select_residual(features.to(DEVICE), k, weight=weight.to(DEVICE), first=first, impl="triton").tolist()
    certify(features, weight, order, first, range(k))


def test_a_batch_equals_its_items_and_inputs_stay():
    features = torch.stack([features_of(kind, 50, 40, 1) for kind in KINDS]).float().to(DEVICE).requires_grad_()
    before = features.detach().clone()
    weight = torch.rand(len(KINDS), 50, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    first = torch.arange(len(KINDS))
    together = select_residual(features, 20, weight=weight, first=first, impl="triton")
    alone = [
        select_residual(f, 20, weight=w, first=int(i), impl="triton")
        for f, w, i in zip(features, weight, first, strict=True)
    ]
    assert torch.equal(together, torch.stack(alone))
    assert torch.equal(features.detach(), before)
    assert select_residual(features[:0], 3, impl="triton").shape == (0, 3)


def test_a_shorter_run_is_a_prefix():
    features = features_of("alike", 72, 70, 7).float().to(DEVICE)
    longest = select_residual(features, 72, impl="triton").tolist()
    assert sorted(longest) == list(range(72))
    for k in (1, 64, 65):
        assert select_residual(features, k, impl="triton").tolist() == longest[:k]


def test_rows_need_not_be_contiguous():
    features = features_of("plain", 33, 70, 0).float().to(DEVICE)
    found, expected = (select_residual(rows, 20, impl="triton") for rows in (features.T, features.T.contiguous()))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("scale", [1e-30, 1e-16, 1e16, 1e30])
def test_magnitudes_whose_squares_are_lost(scale):
    features = features_of("plain", 20, 12, 0).float()
    for rows in (features * scale, torch.cat([features, features * scale])):
        found, expected = both(rows, 16, first=3)
        assert found == expected


def test_exact_ties_zero_rows_and_weights():
    assert both(torch.eye(6), 6)[0] == [0, 1, 2, 3, 4, 5]
    assert both(torch.zeros(3, 2), 3, first=1)[0] == [1, 0, 2]
    weight = torch.tensor([0.0, 0, 1], device=DEVICE)
    assert both(torch.ones(3, 2), 3, weight=weight)[0] == [2, 0, 1]
    assert both(torch.eye(3), 3, weight=0 * weight)[0] == [0, 1, 2]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_features_raise(value):
    features = torch.randn(2, 5, 4, device=DEVICE)
    features[1, 3, 2] = value
    with pytest.raises(InvalidFeatures, match="finite"):
        select_residual(features, 2, impl="triton")


@pytest.mark.parametrize("kind", KINDS)
def test_inside_deferred_it_reads_nothing_and_what_is_undecided_is_done_again(kind, monkeypatch):
    features = torch.stack([features_of("plain", 40, 64, 0), features_of(kind, 40, 64, 1)]).float().to(DEVICE)
    expected = select_residual(features, 39, impl="triton")
    with deferred() as checks:
        order = select_residual(features, 39, first=torch.tensor([1, 7], device=DEVICE), impl="triton")
    assert 0 <= order.min() <= order.max() < 40
    assert order[:, 0].tolist() == [1, 7]
    with contextlib.suppress(Undecided):
        checks.raise_any()
        assert torch.equal(order, select_residual(features, 39, first=torch.tensor([1, 7]), impl="triton"))
    assert torch.equal(read_together(lambda: select_residual(features, 39, impl="triton")), expected)
    if kind in ("duplicates", "zeros", "low rank"):
        with deferred() as checks:
            select_residual(features, 39, impl="triton")
        with pytest.raises(Undecided):
            checks.raise_any()


def test_without_the_trailing_update_other_rows_come(monkeypatch):
    """A control: with it the second panel is the reference's, see test_large_shapes_and_several_panels."""
    if not residual_triton.INTERPRETED:
        pytest.skip("a compiled kernel's parts cannot be replaced")
    features = features_of("plain", 90, 90, 3).float()
    monkeypatch.setattr(residual_kernel, "_trailing_tile", lambda *_: None)
    found, expected = both(features, 76)
    assert found[:64] == expected[:64]
    assert found != expected


def test_broken_ties_would_be_seen(monkeypatch):
    """A control: with no tolerance, rows that equal up to rounding no longer go to the lowest index."""
    rows = torch.eye(8) * (1 + torch.finfo(torch.float32).eps * torch.arange(8)[:, None])
    found, expected = both(rows, 8)
    assert found == expected == list(range(8))
    monkeypatch.setattr(residual_triton, "TIE_TOLERANCE", 0.0)
    assert both(rows, 8)[0] != expected


def test_it_raises_where_it_cannot_run_and_auto_falls_back(monkeypatch):
    rows = features_of("plain", 12, 8, 0).float()
    with pytest.raises(InvalidOption, match="meta"):
        select_residual(torch.empty(3, 3, device="meta"), 1, impl="triton")
    with pytest.raises(InvalidOption, match="allowed are up to 16384"):
        select_residual(torch.empty(16385, 1), 1, impl="triton")
    with monkeypatch.context() as patch:
        patch.setattr(residual_triton, "INTERPRETED", False)
        with pytest.raises(InvalidOption, match="on cpu: allowed is a GPU"):
            select_residual(rows, 1, impl="triton")
    with monkeypatch.context() as patch:
        patch.delattr(sys.modules["foveate.select.residual"], "triton")
        patch.setitem(sys.modules, "foveate.select.residual.triton", None)  # as if the import failed
        with pytest.raises(InvalidOption, match="cannot be imported"):
            select_residual(rows, 1, impl="triton")
        assert select_residual(rows, 4).tolist() == select_residual(rows, 4, impl="reference").tolist()


@pytest.mark.parametrize(
    "error", [residual_triton.triton.TritonError, RuntimeError, torch.OutOfMemoryError], ids=lambda e: e.__name__
)
def test_a_kernel_that_does_not_run_raises_one_line_and_auto_takes_the_reference(monkeypatch, error):
    class Broken:
        def __getitem__(self, grid):
            raise error("too much\nof it")

    rows = features_of("plain", 12, 8, 0).float().to(DEVICE)
    monkeypatch.setattr(residual_triton, "select_kernel", Broken())
    with pytest.raises(InvalidOption, match="cannot run: too much; allowed here"):
        select_residual(rows, 4, impl="triton")
    monkeypatch.setattr("foveate.select.residual._implementation", lambda *_: "triton")  # as auto on a GPU
    assert select_residual(rows, 4).tolist() == select_residual(rows, 4, impl="reference").tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_of_all_dtypes_are_taken_as_they_are(dtype):
    weight = torch.tensor([*(0.75 + i / 256 for i in range(64)), 1.5]).to(dtype)
    exact = weight.double().sort(descending=True, stable=True).indices.tolist()
    for impl in ("reference", "columns", "triton"):
        device = DEVICE if impl != "columns" else "cpu"
        rows = torch.eye(65, device=device)
        assert select_residual(rows, 65, weight=weight.to(device), impl=impl).tolist() == exact


@pytest.mark.parametrize(("n", "k"), [(576, 64), (1023, 192), (2880, 320)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
class TestOnAGpu:
    pytestmark = gpu

    def test_equals_the_reference_and_takes_best_rows(self, n, k, dtype):
        features = features_of("plain", n, 4096, 0).to(dtype)
        found, expected = both(features, k)
        same = sum(a == b for a, b in zip(found, expected, strict=True))
        assert same == k or same > 0.5 * k  # a near tie may part the ways, to rows just as good
        certify(
            features.double() if dtype == torch.float64 else features.float(),
            torch.ones(n),
            found,
            None,
            range(0, k, k // 12),
        )

    @pytest.mark.parametrize("kind", ["alike", "low rank", "duplicates"])
    def test_what_the_host_has_to_finish(self, n, k, dtype, kind):
        features = features_of(kind, n, 4096, 0).to(dtype)
        found, _ = both(features, k)
        wide = features.double() if dtype == torch.float64 else features.float()
        certify(wide, torch.ones(n), found, None, range(0, k, k // 12))

    def test_a_batch_of_many_runs_at_once(self, n, k, dtype):
        features = torch.stack([features_of("plain", n, 512, seed) for seed in range(12)]).to(DEVICE, dtype)
        together = select_residual(features, k)
        for item, order in zip(features, together, strict=True):
            assert torch.equal(select_residual(item, k), order)
