"""select_residual against LAPACK and explicit least squares, on stored vectors (see golden/README.md)."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from foveate.select import optimal_energy, residual_energy, select_residual

FILES = sorted((Path(__file__).parent / "golden").glob("[!m]*.npz"))  # merge_*.npz are of test_golden_merging.py
RUNS = ("ones", "const", "attn", "attn_seedmax", "lognorm", "zeros", "ones_seedrand")
WEIGHTS = {"attn": "in/w_attn", "attn_seedmax": "in/w_attn", "lognorm": "in/w_lognorm", "zeros": "in/w_zeros"}
PRECISIONS = {"64": torch.float64, "32": torch.float32}


@dataclass
class Case:
    """One file: members of the archive, and small values from its JSON part."""

    arrays: dict[str, np.ndarray]
    meta: dict

    def get(self, name):
        return self.arrays[name] if name in self.arrays else np.array(self.meta[name])

    def has(self, name):
        return name in self.arrays or name in self.meta

    def features(self, dtype):
        return torch.tensor(self.get("in/V").astype(np.float64)).to(dtype)

    def weight(self, run, dtype):
        if run == "const":
            return torch.full((len(self.get("in/V")),), 0.37, dtype=dtype)
        return torch.tensor(self.get(WEIGHTS[run]), dtype=dtype) if run in WEIGHTS else None


def load(path):
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return Case(arrays, json.loads(bytes(arrays.pop("meta"))))


CASES = [(path, run) for path in FILES for run in RUNS if load(path).has(f"wg_{run}/order")]


def test_the_set_is_complete():
    assert len(FILES) == 19
    assert len(CASES) == 129


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("path", "run"), CASES, ids=lambda value: getattr(value, "stem", value))
def test_order_and_energy_equal_least_squares(path, run, precision, impl):
    case, dtype = load(path), PRECISIONS[precision]
    expected = case.get(f"wg_{run}/order").astype(int)
    first = int(expected[0]) if "seed" in run else None
    features = case.features(dtype)
    weight = case.weight(run, dtype)
    order = select_residual(features, len(expected), weight=weight, first=first, impl=impl).numpy()
    assert len(set(order.tolist())) == len(expected)
    safe = int(case.get(f"wg_{run}/n_safe{precision}"))
    assert order[:safe].tolist() == expected[:safe].tolist()
    if case.has(f"wg_{run}/n_safe_class{precision}"):
        safe = int(case.get(f"wg_{run}/n_safe_class{precision}"))
        classes = case.get("in/dup_class")
        assert classes[order[:safe]].tolist() == classes[expected[:safe]].tolist()
    energy = residual_energy(features, torch.tensor(expected)).numpy()
    reference = case.get(f"wg_{run}/energy") / case.get(f"wg_{run}/energy")[0]
    assert np.abs(energy - reference).max() < {"64": 1e-10, "32": 1e-5}[precision]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_unweighted_run_is_lapack_column_pivoted_qr(path):
    case = load(path)
    pivots = case.get("qrcp/piv_qr").astype(int)
    safe, classes = int(case.get("wg_ones/n_safe64")), case.get("in/dup_class")
    k = min(len(pivots), int(case.get("qrcp/rank")))
    order = select_residual(case.features(torch.float64), k).numpy()
    safe = min(k, safe)
    assert order[:safe].tolist() == pivots[:safe].tolist()
    if case.has("wg_ones/n_safe_class64"):
        safe = min(k, int(case.get("wg_ones/n_safe_class64")))
        assert classes[order[:safe]].tolist() == classes[pivots[:safe]].tolist()
    energy = residual_energy(case.features(torch.float64), torch.tensor(pivots[:k])).numpy()
    reference = case.get("qrcp/energy_qr")[: k + 1] / case.get("qrcp/energy_qr")[0]
    assert np.abs(energy - reference).max() < 1e-10


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_optimum_is_the_singular_value_tail(path):
    case = load(path)
    tail = case.get("qrcp/svd_tail")
    ours = optimal_energy(case.features(torch.float64), len(tail) - 1).numpy()
    assert np.abs(ours - tail / tail[0]).max() < 1e-10
