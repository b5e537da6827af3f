"""The methods against what their authors' code gave, on stored vectors (see golden/README.md)."""

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from foveate import DART, SCOPE, CDPruner, DivPrune, FasterVLM, FoveateError, VisPruner, VisualTokens
from foveate.select import select_coverage, select_unlike

ROOT = Path(__file__).parent / "golden"
FILES = sorted((ROOT / "methods").glob("*.npz"))
BROKEN = json.loads((ROOT / "methods" / "broken.json").read_text())
PRECISIONS = {"64": torch.float64, "32": torch.float32}
# The stored tolerances of a step, in units of the rounding scale of its score.
TOLERANCE = {
    "64": {"cdpruner": 1e-11, "divprune": 1e-11, "scope": 1e-11},
    "32": {"cdpruner": 1e-5, "divprune": 1e-6, "scope": 5e-7},
}
MARGIN = {"64": 1e-12, "32": 1e-6}
CERTIFIED = 96  # steps of a certificate at most: it recomputes every score of every step
SCOPES = {
    "scope_attn_a1": (SCOPE(), "in/attn_sum"),
    "scope_attn_a0.5": (SCOPE(alpha=0.5), "in/attn_sum"),
    "scope_attn_a2": (SCOPE(alpha=2), "in/attn_sum"),
    "scope_none": (SCOPE(alpha=0), "in/attn_sum"),
    "scope_zeros_a1": (SCOPE(), "in/w_zeros"),
    "scope_add": (SCOPE(combine="add", heads=1), "in/attn_sum"),  # stored is the sum over the heads itself
}
GREEDY = ("cdpruner", "divprune", *SCOPES)


@dataclass
class Case:
    """One file: members of the archive, and small values from its JSON part."""

    name: str
    arrays: dict[str, np.ndarray]
    meta: dict

    def __contains__(self, name):
        return name in self.arrays or name in self.meta

    def __getitem__(self, name):
        return self.arrays[name] if name in self.arrays else np.array(self.meta[name])

    def runs(self, method):
        """Names of the separate runs of a method: budgets and options."""
        names = [*self.arrays, *self.meta]
        return sorted({name.split("/")[1] for name in names if name.startswith(f"{method}/")})

    def tokens(self, dtype, attention="in/attn_cls"):
        """The image, with the signals that the methods of these files read."""
        features = torch.tensor(self["in/V"].astype(np.float64)).to(dtype)
        scores = self[attention].astype(np.float64)
        scores = scores[:, 1:].mean(axis=0) if scores.ndim == 2 else scores
        raw = self["cdpruner/relevance_raw64"] if "cdpruner/relevance_raw64" in self else np.zeros(0)
        return VisualTokens(
            features=features,
            grids=((1, len(features)),),
            cls_attention=torch.tensor(scores).to(dtype),
            clip_relevance=-torch.tensor(raw).to(dtype),
            patches=features,
        )


def load(path):
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    case = Case(path.stem, arrays, json.loads(bytes(arrays.pop("meta"))))
    if "in/V" not in case and (ROOT / path.name).exists():  # the rows of the residual family's files are the same
        with np.load(ROOT / path.name) as archive:
            arrays["in/V"] = archive["in/V"]
    return case


def method_of(name):
    """The method of a greedy run, and where its attention is."""
    return (
        SCOPES[name] if name in SCOPES else ({"cdpruner": CDPruner(), "divprune": DivPrune()}[name], "in/attn_cls")
    )


CASES = {path.stem: load(path) for path in FILES}
RUNS = [(name, run) for name, case in CASES.items() for run in GREEDY if f"{run}/order64" in case]


# The certificate: along an order of one's own, is every choice a best one? Plain numpy, from the formulae.


def cosines(rows):
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit @ unit.T


def determinant_steps(case, order):
    """CDPruner: (scores, noise) before each choice."""
    raw = case["cdpruner/relevance_raw64"]
    relevance = (raw - raw.min() + 1e-6) / (raw.max() - raw.min())
    rows = case["in/V"].astype(np.float64)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    residual = unit
    for chosen in order:
        yield relevance**2 * (residual**2).sum(axis=1), relevance**2
        length = np.linalg.norm(residual[chosen])
        if length < 1e-7:  # the rank is exhausted
            return
        direction = residual[chosen] / length
        residual = residual - np.outer(residual @ direction, direction)


def distance_steps(case, order):
    """DivPrune: (scores, noise) before each choice."""
    distance = 1 - cosines(case["in/V"].astype(np.float64))
    nearest = np.sort(distance, axis=0)[1]
    for step, chosen in enumerate(order):
        yield nearest, np.ones(len(nearest))
        nearest = distance[chosen] if step == 0 else np.minimum(nearest, distance[chosen])


def coverage_steps(case, order, run, squared=False):
    """SCOPE: (scores, noise) before each choice."""
    likeness = cosines(case["in/V"].astype(np.float64))
    method, attention = SCOPES[run]
    weight = case[attention].astype(np.float64) ** method.alpha
    covered = np.zeros(len(likeness))
    for chosen in order:
        gains = np.maximum(0, likeness - covered[:, None]) ** (2 if squared else 1)
        gains = gains.sum(axis=0)
        added = method.combine == "add"
        noise = len(weight) * (1 + weight / len(weight) if added else weight)
        yield gains + weight if added else gains * weight, noise
        covered = np.maximum(covered, likeness[chosen])


def steps_of(case, run, order):
    if run == "cdpruner":
        return determinant_steps(case, order)
    return distance_steps(case, order) if run == "divprune" else coverage_steps(case, order, run)


def certified(steps, order, tolerance):
    """How many leading choices of an order are best ones, within the tolerance."""
    free = np.ones(0, dtype=bool)
    for step, ((scores, noise), chosen) in enumerate(zip(steps, order, strict=False)):
        free = free if len(free) else np.ones(len(scores), dtype=bool)
        most = (scores - tolerance * noise)[free].max()
        if not free[chosen] or scores[chosen] + tolerance * noise[chosen] < most:
            return step
        free[chosen] = False
    return len(order)


# The greedy methods.


def greedy_orders(case, run, precision):
    """The faithful order over the safe prefix, and the default one as far as it is certified."""
    method, attention = method_of(run)
    tokens = case.tokens(PRECISIONS[precision], attention)
    safe = int(case[f"{run}/n_safe{precision}"])
    if f"{run}/n_safe_class{precision}" in case:
        safe = int(case[f"{run}/n_safe_class{precision}"])
    faithful = replace(method, faithful=True).rank(tokens, safe).tolist() if safe else []
    return faithful, method.rank(tokens, min(CERTIFIED, len(case["in/V"]))).tolist()


def agrees(case, run, precision, order):
    """Whether an order is the authors' on the safe prefix (and on the longer one, bit-identical rows alike)."""
    expected, classes = case[f"{run}/order64"].astype(int), case["in/dup_class"]
    safe = min(len(order), int(case[f"{run}/n_safe{precision}"]))
    if order[:safe] != expected[:safe].tolist():
        return False
    alike = f"{run}/n_safe_class{precision}"
    safe = min(len(order), int(case[alike])) if alike in case else 0
    return classes[order[:safe]].tolist() == classes[expected[:safe]].tolist()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("name", "run"), RUNS)
def test_greedy_orders_are_the_authors_and_certified_beyond(name, run, precision):
    case = CASES[name]
    faithful, default = greedy_orders(case, run, precision)
    assert agrees(case, run, precision, faithful)
    assert agrees(case, run, precision, default)
    assert default[: len(faithful)] == faithful[: len(default)]
    assert len(set(default)) == len(default)
    tolerance = TOLERANCE[precision][run.split("_")[0]]
    assert certified(steps_of(case, run, default), default, tolerance) == len(default)
    if precision == "32":  # beyond the prefix the sets stay close, as the authors' two precisions do
        for k, together in case.meta[f"{run}/overlap32_64"].items():
            if int(k) <= min(len(default), int(case[f"{run}/n_safe64"])):
                common = set(default[: int(k)]) & set(case[f"{run}/order64"][: int(k)].tolist())
                assert len(common) / int(k) >= min(1, together) - 0.05


def test_no_greedy_case_is_left_out():
    assert len(FILES) == 35
    assert Counter(run for _, run in RUNS) == {
        "cdpruner": 21,
        "divprune": 21,
        "scope_attn_a1": 21,
        "scope_none": 21,
        "scope_attn_a0.5": 20,
        "scope_attn_a2": 20,
        "scope_zeros_a1": 20,
        "scope_add": 20,
    }
    steps = {p: sum(int(CASES[name][f"{run}/n_safe{p}"]) for name, run in RUNS) for p in PRECISIONS}
    assert steps == {"64": 29917, "32": 8607}
    without = [(name, run) for name, run in RUNS if CASES[name][f"{run}/n_safe64"] == 0]
    assert without == [("duplicates_t144_d128", "divprune")]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("batch")])
def test_batches_give_what_their_images_give_alone(name, precision):
    case, dtype = CASES[name], PRECISIONS[precision]
    batch = torch.tensor(case["in/V"].astype(np.float64)).to(dtype)
    attention = [torch.tensor(case[f"in/attn_sum_{b}"]).to(dtype) for b in range(len(batch))]
    assert (
        select_coverage(batch, 32, weight=torch.stack(attention)).tolist() == case["scope_batch/order64"].tolist()
    )
    for b, features in enumerate(batch):
        relevance = -torch.tensor(case["cdpruner_batch/relevance_raw64"][b]).to(dtype)
        image = VisualTokens(features, ((1, len(features)),), clip_relevance=relevance)
        k = int(case[f"cdpruner_batch/n_safe{precision}"][b])
        order = CDPruner(faithful=True).rank(image, k).tolist()
        assert order == case["cdpruner_batch/order_single64"][b, :k].tolist()


# The others.


def test_fastervlm_keeps_the_authors_sets():
    compared = 0
    for case in CASES.values():
        for run in case.runs("fastervlm"):
            for precision, dtype in PRECISIONS.items():
                assert float(case[f"fastervlm/{run}/margin"]) > MARGIN[precision]
                expected = np.atleast_1d(case[f"fastervlm/{run}/sel"]).tolist()
                found = FasterVLM(faithful=True).rank(case.tokens(dtype), len(expected))
                assert sorted(found.tolist()) == sorted(expected)
                compared += 1
    assert compared == 2 * 143


def test_vispruner_keeps_the_authors_tokens_in_their_order():
    counts = Counter()
    for case in CASES.values():
        for run in case.runs("vispruner"):
            k, ratio = int(run.split("_r")[0][1:]), float(run.split("_r")[1])
            expected = case[f"vispruner/{run}/selected"].tolist()
            for precision, dtype in PRECISIONS.items():
                attention = case.tokens(dtype).cls_attention
                exact = case.tokens(torch.float64).cls_attention
                ordered = torch.equal(*(a.argsort(descending=True, stable=True) for a in (attention, exact)))
                if not bool(case[f"vispruner/{run}/safe64"]) or not ordered:
                    counts["skipped", precision] += 1
                    continue
                method = VisPruner(important=ratio, faithful=True)
                found = method.rank(case.tokens(dtype), k).tolist()
                assert found == expected, (case.name, run, precision)
                assert replace(method, faithful=False).rank(case.tokens(dtype), k).tolist() == found
                counts["compared", precision] += 1
    assert counts == {
        ("compared", "64"): 155,
        ("compared", "32"): 155,
        ("skipped", "64"): 18,  # the stored flag: a cosine or an attention ties, and decides a split
        ("skipped", "32"): 18,
    }


@pytest.mark.parametrize("precision", PRECISIONS)
def test_dart_keeps_the_authors_tokens_given_keys_and_states(precision):
    counts = Counter()
    for case in (case for case in CASES.values() if case.runs("dart")):
        keys, states = (
            torch.tensor(case[f"in/{name}"].astype(np.float64)).to(PRECISIONS[precision])
            for name in ("keys", "hidden")
        )
        flat = keys.transpose(0, 1).flatten(1)
        image = slice(int(case["in/sys_len"]), int(case["in/sys_len"]) + int(case["in/img_len"]))
        for run in case.runs("dart"):
            of_image, of_text = (int(part[2:]) for part in run.split("_")[:2])
            expected = np.atleast_1d(case[f"dart/{run}/ret_sorted"]).tolist()
            assert float(case[f"dart/{run}/margin"].min()) > MARGIN[precision]
            found = DART(of_image, of_text, faithful=True).retained(flat, states, image, len(expected)).tolist()
            own, text = (np.atleast_1d(case[f"dart/{run}/pivot_{of}"]).tolist() for of in ("image", "text"))
            if found[:of_image] == own and float(case[f"dart/{run}/pivot_margin"].min()) > MARGIN[precision]:
                assert sorted(found) == expected, (case.name, run)
                counts["compared"] += 1
                continue
            # Keys that are equal: which of them are pivots, and in which order, is open. Given the authors' ones:
            norms = flat.abs().sum(dim=1)
            assert torch.allclose(norms[found[:of_image]], norms[own], rtol=1e-6)
            pivots = torch.tensor(list({*own, *map(int, text)}))
            free = torch.zeros(len(states), dtype=torch.bool)
            free[image] = True
            free[own] = False
            share = (len(expected) - of_image) // len(pivots)
            taken = torch.cat(select_unlike(states, pivots, free, [share] * len(pivots))).tolist()
            assert sorted(own + taken) == expected, (case.name, run)
            counts["compared, their tied pivots given"] += 1
    assert counts == {"compared": 24, "compared, their tied pivots given": 12}


# What the authors' code breaks on.


@pytest.mark.parametrize("name", sorted({entry["method"] for entry in BROKEN}))
def test_faithful_refuses_where_the_authors_code_breaks_and_the_default_does_not(name):
    entries = [entry for entry in BROKEN if entry["method"] == name]
    for entry in entries:
        case = CASES[entry["case"]]
        method, attention = method_of(name) if name != "vispruner" else (VisPruner(entry["ratio"]), "in/attn_cls")
        tokens = case.tokens(torch.float64, attention)
        k = entry.get("k", entry.get("step", 0) + 1)
        with pytest.raises(FoveateError, match="allowed"):
            replace(method, faithful=True).rank(tokens, k)
        assert len(set(method.rank(tokens, k).tolist())) == k
    assert entries


# Controls: what must not pass.


def test_a_perturbed_formula_does_not_pass():
    case = CASES["gaussian_t144_d128"]
    tokens = case.tokens(torch.float64)
    wrong = CDPruner(sign="+").rank(tokens, 64).tolist()
    assert not agrees(case, "cdpruner", "64", wrong)
    assert certified(steps_of(case, "cdpruner", wrong), wrong, 1e-11) < 3
    wrong = DivPrune().rank(replace(tokens, features=tokens.features + 0.01), 64).tolist()
    assert not agrees(case, "divprune", "64", wrong)
    assert certified(steps_of(case, "divprune", wrong), wrong, 1e-11) < 64
    wrong = SCOPE(alpha=1.1).rank(case.tokens(torch.float64, "in/attn_sum"), 64).tolist()
    assert not agrees(case, "scope_attn_a1", "64", wrong)
    assert certified(steps_of(case, "scope_attn_a1", wrong), wrong, 1e-11) < 64
    right = SCOPE().rank(case.tokens(torch.float64, "in/attn_sum"), 64).tolist()
    assert certified(coverage_steps(case, right, "scope_attn_a1", squared=True), right, 1e-11) < 64
