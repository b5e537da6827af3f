"""VisionZip, PruMerge, PruMerge+ and ToMe against what their authors' code gave (see golden/README.md).

Indices first, then features; every case of the set is compared, and counts say so. Decisions nearer to a tie than
the precision tells apart are compared by what they are decided by, and counted.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from foveate import InvalidBudget, InvalidFeatures, PruMerge, PruMergePlus, ToMe, VisionZip, VisualTokens
from foveate.methods.base import top
from foveate.methods.merging.prumergeplus import sampled
from foveate.select import count_outliers, merge_bipartite, merge_contextual, merge_neighbours
from taps import attention_tap

FOLDER = Path(__file__).parent / "golden"
FILES = sorted(FOLDER.glob("merge_*.npz"))
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
RUNS = ("prumerge", "prumerge_fixed", "prumergeplus", "prumergeplus_fixed")
PRECISIONS = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


class Case:
    """One file: arrays, small values, and the features kept with the residual family's vectors."""

    def __init__(self, path, dtype):
        with np.load(path) as archive:
            self.values = {name: archive[name] for name in archive.files}
        self.values |= json.loads(bytes(self.values.pop("meta")))
        if "in/V" not in self.values:
            with np.load(FOLDER / path.name.removeprefix("merge_")) as archive:
                self.values["in/V"] = archive["in/V"]
        self.name, self.dtype = path.stem, dtype
        self.n = len(self.values["in/V"])

    def __getitem__(self, name):
        return np.array(self.values[name])

    def tensor(self, name):
        return torch.tensor(self[name].astype(np.float64)).to(self.dtype)

    def index(self, name):
        return torch.tensor(self[name].astype(np.int64))

    def runs(self, prefix):
        return sorted({"/".join(name.split("/")[:2]) for name in self.values if name.startswith(prefix)})

    def pm_keys(self):
        product = self["in/V"].astype(np.float32) * self["in/pm_colscale"]
        return torch.tensor(product.astype(np.float64)).to(self.dtype)

    def tokens(self, **signals):
        features, side = self.tensor("in/V"), round(self.n**0.5)
        return VisualTokens(features, ((side, side),), **signals)


def cases(dtype):
    return [Case(path, dtype) for path in FILES]


def same(ours, expected, dtype):
    """Features: to 1e-5 of each entry, and rounding of each row's largest."""
    expected = torch.tensor(np.array(expected)).double()
    rounding = {torch.float64: 1e-12, torch.float32: 1e-5}[dtype] * expected.abs().amax(-1, keepdim=True)
    return bool(((ours.double() - expected).abs() <= 1e-5 * expected.abs() + rounding).all())


def norms(rows):
    return rows.double().norm(dim=1)


def test_the_set_is_complete():
    assert len(FILES) == 24
    found = Counter()
    for case in cases(torch.float64):
        found.update(run.split("/")[0] for prefix in ("visionzip/", "tome/") for run in case.runs(prefix))
        found.update(run for run in RUNS if f"{run}/idx" in case.values)
    assert found == {"visionzip": 95, "tome": 72} | {"prumerge": 18, "prumerge_fixed": 18} | {
        "prumergeplus": 6,
        "prumergeplus_fixed": 6,
    }


def visionzip(case, run, faithful, keys=None):
    """With the CLS token first, as the authors have it: dominant positions, targets and shares."""
    scores = case.tensor("in/attn_cls").sum(0)[1:]
    dominant = torch.cat([torch.zeros(1, dtype=torch.long), 1 + top(scores, int(case[f"{run}/dominant_num"]))])
    keys = case.tensor("in/metric") if keys is None else keys
    return dominant, *merge_contextual(keys, dominant, int(case[f"{run}/contextual_num"]), faithful=faithful)


@pytest.mark.parametrize("faithful", [True, False])
@PRECISIONS
def test_visionzip_is_the_authors(dtype, faithful):
    count = Counter()
    for case in cases(dtype):
        states = torch.cat([case.tensor("in/cls")[None], case.tensor("in/V")])
        for run in case.runs("visionzip"):
            assert case[f"{run}/topk_margin"] > TOLERANCE[dtype]
            dominant, targets, shares = visionzip(case, run, faithful)
            assert set(dominant.tolist()) == set(case[f"{run}/all_indices"].tolist()), (case.name, run)
            assert dominant.sort().values.tolist() == case[f"{run}/dominant_pos_sorted"].tolist()
            assert targets.tolist() == case[f"{run}/target_pos"].tolist(), (case.name, run)
            merged = case.index(f"{run}/merged_pos")
            assert not shares[:, dominant].any()
            assigned = shares[:, merged].argmax(0)
            skipped = case[f"{run}/unsafe"].astype(int)
            safe = torch.ones(len(merged), dtype=torch.bool)
            safe[skipped] = False
            count["assignments"] += int(safe.sum())
            count["assignments skipped"] += len(skipped)
            assert torch.equal(assigned[safe], case.index(f"{run}/assign")[safe]), (case.name, run)
            ours = shares @ states
            if f"{run}/contextual" in case.values:
                assert same(ours, case[f"{run}/contextual"], dtype), (case.name, run)
                count["features"] += 1
            if f"{run}/contextual_rownorm" in case.values:
                assert same(norms(ours)[:, None], case[f"{run}/contextual_rownorm"][:, None], dtype)
                count["norms"] += 1
            count["cases"] += 1
    assert count == {"cases": 95, "assignments": 25055, "assignments skipped": 0} | {"features": 86, "norms": 90}


@PRECISIONS
def test_visionzip_of_the_table_is_the_authors_without_the_cls_token(dtype):
    """One dominant patch more stands for the CLS token; with as many dominant ones all else is the same."""
    count = 0
    for case in cases(dtype):
        metric = case.tensor("in/metric")[1:]
        tokens = case.tokens(cls_attention=case.tensor("in/attn_cls").mean(0)[1:], keys=metric[:, None])
        for run in case.runs("visionzip"):
            contextual, dominant = int(case[f"{run}/contextual_num"]), int(case[f"{run}/dominant_num"])
            k = contextual + dominant
            for faithful in (True, False):
                method = VisionZip(contextual / k, faithful=faithful)
                assert method.split(k) == (dominant, contextual)
                places = method.rank(tokens, k)
                assert set(places[:dominant].tolist()) == set((case[f"{run}/all_indices"][1:] - 1).tolist())
                assert places[dominant:].tolist() == (case[f"{run}/target_pos"] - 1).tolist()
                merged = method.merge(tokens, k)
                assert torch.equal(merged[:dominant], tokens.features[places[:dominant]])
                if f"{run}/contextual" in case.values:
                    assert same(merged[dominant:], case[f"{run}/contextual"], dtype)
            count += 1
    assert count == 95


@pytest.mark.parametrize("faithful", [True, False])
@PRECISIONS
def test_tome_is_the_authors(dtype, faithful):
    count = Counter()
    for case in cases(dtype):
        metric = case.tensor("in/metric")[1:]
        states = case.tensor("in/V")
        tokens = case.tokens(keys=metric[:, None])
        for run in case.runs("tome"):
            r = int(run.split("/r")[1])
            places, shares = merge_bipartite(metric, case.n - r, faithful=faithful)
            method = ToMe(faithful=faithful)
            assert torch.equal(places, method.rank(tokens, case.n - r))
            assert torch.equal(shares, method.mix(tokens, case.n - r))
            gaps = min(float(case[f"{run}/node_gap_min"]), float(case[f"{run}/dst_gap_min"]))
            assert gaps > (1e-12 if dtype == torch.float64 else 1e-7)
            # The authors' positions begin with the CLS token: row i of A is patch 2 i - 1, of B patch 2 i.
            alone, into = 2 * case.index(f"{run}/unm_idx") - 1, 2 * case.index(f"{run}/dst_idx")
            joined = 2 * case.index(f"{run}/src_idx") - 1
            assert alone[0] == -1
            b = torch.arange(0, case.n, 2)
            order = torch.searchsorted(places, torch.cat([alone[1:], b]))
            assert torch.equal(places[order], torch.cat([alone[1:], b])), (case.name, run)
            owner = shares.argmax(0)
            assert torch.equal(places[owner[joined]], into), (case.name, run)
            size = (shares > 0).sum(1)[order]
            assert size.tolist() == case[f"{run}/size"][1:].tolist()
            ours = torch.cat([states, case.tensor("in/cls")[None]])
            out = torch.cat([ours[-1:], (shares @ states)[order]])
            if f"{run}/out" in case.values:
                assert same(out, case[f"{run}/out"], dtype), (case.name, run)
                count["features"] += 1
            if f"{run}/out_rownorm" in case.values:
                assert same(norms(out)[:, None], case[f"{run}/out_rownorm"][:, None], dtype), (case.name, run)
                count["norms"] += 1
            count["cases"] += 1
    assert count == {"cases": 72, "features": 27, "norms": 42}  # of 3, sizes alone: golden/README.md


def cosines(keys, idx):
    unit = torch.nn.functional.normalize(keys, dim=1)
    return unit[idx] @ unit.T


def chosen_by(case, run, weights):
    ratio = float(case[f"{run}/ratio"])
    if run.startswith("prumergeplus"):
        return sampled(weights, ratio, fixed=run.endswith("fixed"))
    return top(weights, int(case.n * ratio))


@PRECISIONS
def test_prumerge_is_the_authors(dtype):
    count = Counter()
    for case in cases(dtype):
        for run in RUNS:
            if f"{run}/idx" not in case.values:
                continue
            weights, keys = case.tensor("cls_attn64"), case.pm_keys()
            if not run.endswith("fixed"):
                assert int(case.n * (count_outliers(weights) / case.n)) == int(case[f"{run}/n_topk"])
                assert count_outliers(weights) / case.n == float(case[f"{run}/ratio"])
            ours, idx = chosen_by(case, run, weights), case.index(f"{run}/idx")
            assert case[f"{run}/topk_margin"] > TOLERANCE[dtype]
            assert sorted(ours.tolist()) == sorted(idx.tolist()), (case.name, run)
            if case[f"{run}/idx_gap_min"] > TOLERANCE[dtype]:
                assert torch.equal(ours, idx), (case.name, run)
            else:  # equal attention, in either order
                assert torch.allclose(weights[ours], weights[idx], rtol=1e-6)
                count["tied orders"] += 1
            shares = merge_neighbours(keys, weights, idx, faithful=True)
            rest = shares[-1].nonzero().flatten()
            assert rest.tolist() == case[f"{run}/compl"].tolist(), (case.name, run)
            times = shares[:-1].clone()
            times[torch.arange(len(idx)), idx] -= 1
            times = (times / weights).round().long()
            safe = torch.tensor(case[f"{run}/nn_margin"] > TOLERANCE[dtype])
            expected = torch.zeros_like(times).scatter_add_(
                1, case.index(f"{run}/nn32"), torch.ones(len(idx), 32, dtype=torch.long)
            )
            assert torch.equal(times[safe], expected[safe]), (case.name, run)
            near = cosines(keys, idx)  # of a tie at the border, either is as near
            for row in (~safe).nonzero().flatten():
                pair = [near[row].repeat_interleave(found[row]).sort().values for found in (times, expected)]
                assert torch.allclose(*pair, rtol=0, atol=2 * TOLERANCE[dtype]), (case.name, run)
            count["neighbourhoods"] += int(safe.sum())
            count["tied neighbourhoods"] += int((~safe).sum())
            features = shares @ case.tensor("in/V")
            check = torch.cat([safe, torch.ones(1, dtype=torch.bool)])
            if f"{run}/features" in case.values:
                assert same(features[check], case[f"{run}/features"][check.numpy()], dtype), (case.name, run)
            else:
                head = case[f"{run}/features_head"]
                few = check[: len(head)]
                assert same(features[: len(head)][few], head[few.numpy()], dtype), (case.name, run)
                assert same(features[-1], case[f"{run}/features_extra"], dtype), (case.name, run)
            rownorm = case[f"{run}/rownorm"][:, None]
            assert same(norms(features)[check][:, None], rownorm[check.numpy()], dtype), (case.name, run)
            count[run] += 1
    tied = {torch.float64: (3468, 130, 8), torch.float32: (3465, 133, 14)}[dtype]
    names = ("neighbourhoods", "tied neighbourhoods", "tied orders")
    assert count == dict(zip(names, tied, strict=True)) | dict(zip(RUNS, (18, 18, 6, 6), strict=True))


@PRECISIONS
def test_prumerge_of_the_table_is_the_authors(dtype):
    count = Counter()
    for case in cases(dtype):
        if "cls_attn64" not in case.values:
            continue
        tokens = case.tokens(joint_attention=case.tensor("cls_attn64"), keys=case.pm_keys()[:, None])
        for run in RUNS[:3]:
            if f"{run}/idx" not in case.values:
                continue
            k = len(case[f"{run}/idx"]) + 1
            kind = PruMergePlus if run == "prumergeplus" else PruMerge
            for faithful in (True, False) if kind is PruMerge else (True,):
                method = kind(faithful=faithful)
                places, merged = method.rank(tokens, k), method.merge(tokens, k)
                assert set(places[:-1].tolist()) == set(case[f"{run}/idx"].tolist())
                left = case.tensor("cls_attn64").clone()
                left[places[:-1]] = -1
                assert places[-1] == left.argmax()
                assert len(set(places.tolist())) == k
                theirs = np.sort(case[f"{run}/rownorm"][:-1])
                if (case[f"{run}/nn_margin"] > TOLERANCE[dtype]).all():
                    assert same(norms(merged[:-1]).sort().values[:, None], theirs[:, None], dtype)
                    count["features"] += 1
                extra = (
                    case[f"{run}/features"][-1]
                    if f"{run}/features" in case.values
                    else case[f"{run}/features_extra"]
                )
                assert same(merged[-1], extra, dtype)
                count[f"{run} {faithful}"] += 1
            if kind is PruMergePlus:
                with pytest.raises(InvalidBudget, match=f"k={k + 1} .* allowed is this image's {k}"):
                    PruMergePlus(faithful=True).rank(tokens, k + 1)
    assert count.pop("features") == {torch.float64: 65, torch.float32: 64}[dtype]  # of those without ties
    of_each = {f"{run} {faithful}": 18 for run in RUNS[:2] for faithful in (True, False)}
    assert count == of_each | {"prumergeplus True": 6}


def test_the_tap_gives_the_attention_of_all_channels_at_once():
    """`cls_attn64`, through a real CLIP attention layer whose projections make the golden queries and keys."""
    from transformers import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPAttention

    count = 0
    for case in cases(torch.float32):
        if "cls_attn64" not in case.values:
            continue
        d = case["in/V"].shape[1]
        layer = CLIPAttention(CLIPVisionConfig(hidden_size=d, num_attention_heads=4, attn_implementation="sdpa"))
        scale = case.tensor("in/pm_colscale")
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.zero_()
            layer.k_proj.weight.copy_(torch.diag(scale))
            layer.q_proj.bias.copy_(case.tensor("in/pm_q_cls"))
        states = torch.cat([(case.tensor("in/pm_k_cls") / scale)[None], case.tensor("in/V")])[None]
        with attention_tap(layer, first=True, joint=True) as captured, torch.no_grad():
            layer(hidden_states=states)
        expected = case.tensor("cls_attn64")
        assert torch.allclose(captured[0][1:], expected, rtol=2e-5, atol=0), case.name
        count += 1
    assert count == 18


# Controls that must fail, and what the authors' code breaks at.


def test_control_other_keys_other_parities_and_fewer_neighbours_differ():
    case = Case(FOLDER / "merge_clustered_t144_d128.npz", torch.float64)
    metric = case.tensor("in/metric")
    run = "visionzip/k32"
    _, targets, shares = visionzip(case, run, True, keys=metric.roll(1, 0))
    assert targets.tolist() == case[f"{run}/target_pos"].tolist()
    merged = case.index(f"{run}/merged_pos")
    assert not torch.equal(shares[:, merged].argmax(0), case.index(f"{run}/assign"))
    states = torch.cat([case.tensor("in/cls")[None], case.tensor("in/V")])
    assert not same(shares @ states, case[f"{run}/contextual"], torch.float32)

    places, _ = merge_bipartite(metric[1:].roll(1, 0), case.n - 16)
    alone = 2 * case.index("tome/r16/unm_idx")[1:] - 1
    assert set(places[places % 2 == 1].tolist()) != set(alone.tolist())

    idx, weights = case.index("prumerge/idx"), case.tensor("cls_attn64")
    fewer = merge_neighbours(case.pm_keys(), weights, idx, 31, faithful=True) @ case.tensor("in/V")
    assert not same(fewer, case["prumerge/features"], torch.float32)


def test_repeats_are_lost_in_the_authors_way_only_when_asked_to():
    case = Case(FOLDER / "merge_gaussian_t576_d256.npz", torch.float64)
    idx = case.index("prumergeplus_fixed/idx")
    assert len(idx) - len(set(idx.tolist())) == 7
    with pytest.raises(InvalidFeatures, match="allowed are distinct indices from 0 to 575"):
        merge_neighbours(case.pm_keys(), case.tensor("cls_attn64"), idx)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_keys_are_compared_in_full_precision(half):
    """Places of VisionZip and PruMerge follow attention, which is float32 always; ToMe's follow the keys."""
    worst = {"rounded": 1.0, "one round": 1.0}
    for case in cases(torch.float64):
        keys = case.tensor("in/metric")[1:]
        for k in (case.n * 3 // 4, case.n // 2, case.n // 3, case.n // 9):
            ours, rounded, exact = (
                set(merge_bipartite(given, k)[0].tolist())
                for given in (keys.to(half), keys.to(half).double(), keys)
            )
            worst["rounded"] = min(worst["rounded"], len(ours & rounded) / k)
            if k >= case.n // 2:
                worst["one round"] = min(worst["one round"], len(ours & exact) / k)
    assert worst["rounded"] == 1
    assert worst["one round"] >= 0.99
