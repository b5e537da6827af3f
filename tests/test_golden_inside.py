"""Methods inside the language model against their authors' code, on stored vectors (see golden/README.md).

Attention is stored as rows of a softmax. Our scores come from queries and keys: here keys are the logarithms of
those rows, one dimension per rater, and what a row leaves for other columns is a column of its own.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import foveate
from foveate.inside.scores import paid
from foveate.methods.base import top
from foveate.select.clusters import density_peaks

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(path.stem for path in (GOLDEN / "inside").glob("*.npz"))
PRECISIONS = {"64": torch.float64, "32": torch.float32}
TOLERANCE = {"64": 1e-9, "32": 1e-6}
TABLE = [(retain, layer) for retain in (192, 128, 96, 64) for layer in (2, 6, 15)]


class Case:
    """One file, and the states and keys stored for other methods beside it."""

    def __init__(self, name):
        self.values = {}
        for folder in ("methods", "inside"):
            with np.load(GOLDEN / folder / f"{name}.npz") as archive:
                self.values |= {key: archive[key] for key in archive.files}
            self.values |= json.loads(bytes(self.values.pop("meta")))

    def __contains__(self, key):
        return key in self.values

    def __getitem__(self, key):
        return np.asarray(self.values[key])

    def tensor(self, key, dtype):
        return torch.tensor(self[key].astype(np.float64)).to(dtype)

    @property
    def image(self):
        return slice(int(self["in/sys_len"]), int(self["in/sys_len"]) + int(self["in/img_len"]))


CASES = {name: Case(name) for name in NAMES}


def attended(rows):
    """``[columns]``: our scores of attention rows ``[heads, raters, columns]``."""
    halved = rows / 2  # stored rows sum to 1 but for rounding
    rest = 1 - halved.sum(dim=-1, keepdim=True)
    logarithms = torch.cat([halved, rest], dim=-1).clamp(min=1e-30).log()  # [heads, raters, columns + 1]
    raters = logarithms.shape[1]
    query = torch.eye(raters, dtype=rows.dtype).expand(len(rows), -1, -1)
    allowed = torch.ones(raters, logarithms.shape[-1], dtype=torch.bool)
    return 2 * paid(query, logarithms.transpose(1, 2), allowed)[:-1]


def same_choice(found, scores, expected, margin, tolerance):
    """Equal sets; where the cut is a tie, all above it are in and all below are out."""
    if margin > tolerance:
        return sorted(found.tolist()) == sorted(expected.tolist())
    cut = scores[torch.tensor(expected)].min()
    chosen = set(found.tolist())
    return (
        len(chosen) == len(expected)
        and all(index in chosen for index in (scores > cut + tolerance).nonzero().flatten().tolist())
        and all(index not in chosen for index in (scores < cut - tolerance).nonzero().flatten().tolist())
    )


def budgets(case, method):
    """Every k that a method is stored for."""
    return sorted({int(key.split("/")[1][1:]) for key in case.values if key.startswith(f"{method}/k")})


def test_the_set_is_complete():
    assert len(NAMES) == 9
    for method in ("fastv", "pyramiddrop"):
        assert sum(len(budgets(case, method)) for case in CASES.values()) == 54
    assert sum("sparsevlm/v1/retain64_layer2/sel" in case for case in CASES.values()) == 9
    assert sum("sparsevlm/merge/pos" in case for case in CASES.values()) == 6


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_fastv(name, precision):
    case, tolerance = CASES[name], TOLERANCE[precision]
    scores = attended(case.tensor("in/attn_last", PRECISIONS[precision])[:, None])[case.image]
    assert np.abs(scores.double().numpy() - case["fastv/score64"]).max() < tolerance
    for k in budgets(case, "fastv"):
        expected = np.atleast_1d(case[f"fastv/k{k}/top"]).astype(int)
        margin = float(case[f"fastv/k{k}/margin"])
        exact = torch.tensor(case["fastv/score64"])
        assert same_choice(top(scores, k), exact, expected, margin, {"64": 1e-12, "32": 1e-6}[precision])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_pyramiddrop(name, precision):
    case, dtype = CASES[name], PRECISIONS[precision]
    query, keys = case.tensor("in/q_last", dtype)[:, None], case.tensor("in/keys", dtype)
    allowed = torch.ones(1, keys.shape[1], dtype=torch.bool)
    scores = paid(query / query.shape[-1] ** 0.5, keys, allowed)[case.image]
    exact = torch.tensor(case["pyramiddrop/score64"])  # its softmax is of float32
    assert (scores.double() - exact).abs().max() < 1e-6
    for k in budgets(case, "pyramiddrop"):
        expected = np.atleast_1d(case[f"pyramiddrop/k{k}/keep"]).astype(int)
        margin = float(case[f"pyramiddrop/k{k}/margin"])
        assert same_choice(top(scores, k), exact, expected, margin, 1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_sparsevlm(name, precision):
    case, dtype = CASES[name], PRECISIONS[precision]
    hidden = case.tensor("in/hidden", dtype)
    visual, text = hidden[case.image], hidden[case.image.stop :]
    raters = foveate.SparseVLM().raters(visual, text)
    assert raters.nonzero().flatten().tolist() == np.atleast_1d(case["sparsevlm/rater_idx"]).tolist()
    scores = attended(case.tensor("in/attn_text", dtype)[:, raters])
    exact = torch.tensor(case["sparsevlm/v1/relation64"])
    assert (scores.double() - exact).abs().max() < TOLERANCE[precision]
    for retain, layer in TABLE:
        count = {stage.layer - 1: stage.count for stage in foveate.SparseVLM().stages(32, 576, retain)}[layer]
        run = f"sparsevlm/v1/retain{retain}_layer{layer}"
        expected = np.atleast_1d(case[f"{run}/sel"]).astype(int)
        assert len(expected) == min(count, len(visual) - 1)
        margin = float(case[f"{run}/margin"])
        assert same_choice(
            top(scores, len(expected)), exact, expected, margin, {"64": 1e-12, "32": 1e-6}[precision]
        )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", [name for name in NAMES if "sparsevlm/merge/pos" in CASES[name]])
def test_sparsevlm_clusters(name, precision):
    case, dtype = CASES[name], PRECISIONS[precision]
    assert bool(case["sparsevlm/merge/stable"])
    states = case.tensor("in/hidden", dtype)[case.image]
    places, count = torch.tensor(case["sparsevlm/merge/pos"].astype(int)), int(case["sparsevlm/merge/cluster_num"])
    centres, assigned = density_peaks(states[places], count)
    expected = case["sparsevlm/merge/centers_seeds"][0].astype(int).tolist()
    assert sorted(centres.tolist()) == sorted(expected)
    groups = {frozenset((assigned == own).nonzero().flatten().tolist()) for own in range(count)}
    theirs = case["sparsevlm/merge/assign_seeds"][0].astype(int)
    assert groups == {frozenset(np.flatnonzero(theirs == own).tolist()) for own in range(count)}
    means = {
        int(centre): states[places][assigned == own].mean(dim=0) for own, centre in enumerate(centres.tolist())
    }
    for centre, merged in zip(expected, case["sparsevlm/merge/merged_seed0"], strict=True):
        assert np.allclose(means[centre].double().numpy(), merged, rtol=1e-5, atol=1e-5)
    # the same through the method: it is given what the authors drop, and orders it itself
    relation = torch.tensor(case["sparsevlm/v1/relation64"]).to(dtype)
    dropped = torch.ones(len(states), dtype=torch.bool)
    dropped[torch.tensor(np.atleast_1d(case["sparsevlm/v1/retain64_layer2/sel"]).astype(int))] = False
    gone = dropped.nonzero().flatten()
    recycled = foveate.SparseVLM().recycle(states[gone], relation[gone])
    assert len(recycled.places) == count
    if float(case["sparsevlm/merge/pos_margin"]) > 1e-7:
        assert sorted(gone[recycled.places].tolist()) == sorted(places[torch.tensor(expected)].tolist())


def test_control_another_formula_differs():
    """The largest head in place of the mean, and the sum over raters' text in place of attention."""
    wrong = 0
    for case in CASES.values():
        rows = case.tensor("in/attn_last", torch.float64)[:, case.image]
        for k in budgets(case, "fastv"):
            expected = set(np.atleast_1d(case[f"fastv/k{k}/top"]).tolist())
            wrong += set(top(rows.amax(dim=0), k).tolist()) != expected
    assert wrong > 54 // 2
