"""Contracts over every method in the table, and what each one says it does."""

from dataclasses import replace
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate import (
    METHODS,
    RRQR,
    SPARE,
    InvalidOption,
    MissingSignal,
    NormTopK,
    Random,
    RelevanceTopK,
    ResPrune,
    UniformGrid,
    VisualTokens,
)
from foveate.methods import Resizing
from foveate.methods.relevance import question_relevance, scaled
from foveate.select import select_residual


def tokens(height=6, width=8, d=16, m=3, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    n = height * width
    return VisualTokens(
        features=torch.randn(n, d, generator=generator).to(dtype),
        grids=((height, width),),
        family="llava",
        cls_attention=torch.rand(n, generator=generator),
        question=torch.randn(m, d, generator=generator),
        clip_relevance=torch.rand(n, generator=generator) - 0.5,
        received_attention=torch.rand(n, generator=generator),
        patches=torch.randn(n, d + 3, generator=generator).to(dtype),
        joint_attention=torch.rand(n, generator=generator),
        keys=torch.randn(n, 2, 4, generator=generator).to(dtype),
    )


HARD_CASES = {
    "duplicates": lambda t: replace(
        t, features=t.features[torch.arange(48) % 5], patches=t.patches[torch.arange(48) % 5]
    ),
    "all equal": lambda t: replace(t, features=torch.ones_like(t.features), patches=torch.ones_like(t.patches)),
    "all zero": lambda t: replace(t, features=torch.zeros_like(t.features), patches=torch.zeros_like(t.patches)),
    "some zero": lambda t: replace(
        t,
        features=t.features * (torch.arange(48) % 3 > 0)[:, None],
        patches=t.patches * (torch.arange(48) > 9)[:, None],
    ),
    "no patches": lambda t: replace(t, patches=None),
    "zero attention": lambda t: replace(t, cls_attention=torch.zeros(48)),
    "no question": lambda t: replace(t, question=t.question[:0], clip_relevance=torch.empty(0)),
    "zero question": lambda t: replace(t, question=torch.zeros_like(t.question)),
    "constant relevance": lambda t: replace(t, clip_relevance=torch.full((48,), 0.3), question=t.question[:0]),
    "negative cosines": lambda t: replace(t, question=-t.features.sum(0, keepdim=True), features=t.features.abs()),
    "constant attention": lambda t: replace(t, cls_attention=torch.ones(48)),
    "half precision": lambda t: replace(t, features=t.features.half(), patches=t.patches.half()),
    "bfloat16": lambda t: replace(
        t, features=t.features.bfloat16(), question=t.question.bfloat16(), patches=t.patches.bfloat16()
    ),
    "double": lambda t: replace(t, features=t.features.double()),
}


@pytest.mark.parametrize("case", HARD_CASES)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("k", [1, 2, 7, 17, 47, 48])
def test_always_k_distinct_tokens(name, case, k):
    method, image = METHODS[name](), HARD_CASES[case](tokens())
    order = method.rank(image, k)
    expected = prod(method.size(image.grids[0], k)) if isinstance(method, Resizing) else k
    assert order.dtype == torch.long
    assert order.shape == (expected,)
    assert len(set(order.tolist())) == expected
    assert order.min() >= 0
    assert order.max() < 48
    assert order.tolist() == method.rank(image, k).tolist()


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_a_documented_frozen_dataclass(name):
    method = METHODS[name]()
    assert method == METHODS[name]()
    assert "Source:" in METHODS[name].__doc__
    assert "Differs:" in METHODS[name].__doc__
    assert method.source
    with pytest.raises(AttributeError):
        method.source = ""


@pytest.mark.parametrize("name", METHODS)
def test_a_missing_signal_raises(name):
    bare = tokens().with_only(frozenset())
    method = METHODS[name]()
    if method.needs:
        with pytest.raises(MissingSignal):
            method.rank(bare, 4)
    else:
        assert len(method.rank(bare, 4)) == 4


@pytest.mark.parametrize("case", [None, *HARD_CASES])
@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].nested])
@given(
    seed=st.integers(0, 9), d=st.sampled_from([3, 16, 64]), ks=st.tuples(st.integers(1, 48), st.integers(1, 48))
)
@settings(max_examples=25, deadline=None)
def test_nested_rankings_are_prefixes_of_longer_ones(name, case, seed, d, ks):
    image = HARD_CASES.get(case, lambda t: t)(tokens(seed=seed, d=d))
    shorter, longer = (METHODS[name]().rank(image, k) for k in sorted(ks))
    assert longer[: len(shorter)].tolist() == shorter.tolist()


def test_a_method_promises_nested_rankings_where_it_has_them():
    assert not UniformGrid.nested
    assert UniformGrid().rank(tokens(), 20)[:9].tolist() != UniformGrid().rank(tokens(), 9).tolist()
    assert {name for name in METHODS if METHODS[name].nested} >= {"spare", "resprune", "rrqr", "random", "norm"}


@given(st.integers(1, 12), st.integers(1, 12), st.data())
@settings(max_examples=100)
def test_the_uniform_grid_is_even(height, width, data):
    k = data.draw(st.integers(1, height * width))
    order = UniformGrid().rank(tokens(height, width), k)
    assert len(set(order.tolist())) == k
    rows = torch.bincount(order // width, minlength=height)
    used = rows[rows > 0]
    assert used.max() - used.min() <= 1


def test_the_uniform_grid_of_64_in_576_is_8_by_8():
    order = UniformGrid().rank(tokens(24, 24), 64)
    assert sorted({int(i) // 24 for i in order}) == sorted({int(i) % 24 for i in order}) == list(range(1, 24, 3))


def test_random_depends_on_its_seed_alone():
    assert Random(1).rank(tokens(seed=5), 9).tolist() == Random(1).rank(tokens(seed=6), 9).tolist()
    assert Random(1).rank(tokens(), 9).tolist() != Random(2).rank(tokens(), 9).tolist()


def test_norm_and_relevance_are_top_k():
    image = tokens()
    norms = image.features.norm(dim=1)
    assert NormTopK().rank(image, 5).tolist() == norms.topk(5).indices.tolist()
    cosines = torch.nn.functional.cosine_similarity(image.features[:, None], image.question[None], dim=-1)
    assert RelevanceTopK().rank(image, 5).tolist() == cosines.amax(1).topk(5).indices.tolist()
    assert RelevanceTopK("mean").rank(image, 5).tolist() == cosines.mean(1).topk(5).indices.tolist()
    pooled = torch.nn.functional.cosine_similarity(image.features, image.question.mean(0, keepdim=True), dim=-1)
    assert RelevanceTopK("pooled").rank(image, 5).tolist() == pooled.topk(5).indices.tolist()


def test_spare_weighs_against_relevance():
    image = tokens()
    low, high = image.clip_relevance.min(), image.clip_relevance.max()
    weight = 1 - (image.clip_relevance - low) / (high - low) + 1e-6
    for method, beta in ((SPARE(), 0.25), (SPARE(beta=1), 1), (SPARE(beta=2.0), 2)):
        expected = select_residual(image.features, 9, weight=weight**beta)
        assert method.rank(image, 9).tolist() == expected.tolist()
    assert image.clip_relevance.argmax() not in SPARE(beta=50.0).rank(image, 15)


def test_spare_falls_back_to_the_language_models_space_only_when_asked_to():
    image = tokens()
    without = replace(image, clip_relevance=None)
    assert SPARE().rank(without, 9).tolist() == SPARE(relevance="llm").rank(image, 9).tolist()
    with pytest.raises(MissingSignal, match="clip_relevance"):
        SPARE(relevance="clip").rank(without, 9)


@pytest.mark.parametrize("method", [SPARE(beta=0), SPARE(relevance=None), ResPrune(alpha=0, seed="norm")])
def test_without_text_they_are_rrqr(method):
    assert method.rank(tokens(), 20).tolist() == RRQR().rank(tokens(), 20).tolist()


def test_resprune_multiplies_energy_with_relevance():
    image = tokens()
    r = question_relevance(image.features, image.question, "max").clamp(min=0.01)
    first = int(image.cls_attention.argmax())
    for alpha, method in ((0.75, ResPrune()), (0.75, ResPrune(seed="cls")), (0.2, ResPrune(alpha=0.2))):
        expected = select_residual(image.features, 12, weight=r**alpha, first=first)
        assert method.rank(image, 12).tolist() == expected.tolist()
    longest = int(image.features.norm(dim=1).argmax())
    assert ResPrune(seed="norm").rank(image, 12)[0] == longest
    assert ResPrune().rank(replace(image, cls_attention=None), 12)[0] == longest


def test_the_floor_is_what_irrelevance_counts_as():
    image = tokens()
    r = question_relevance(image.features, image.question, "max")
    first = int(image.cls_attention.argmax())
    for floor in (1e-6, 0.2):
        expected = select_residual(image.features, 12, weight=r.clamp(min=floor) ** 0.75, first=first)
        assert ResPrune(floor=floor).rank(image, 12).tolist() == expected.tolist()
    for bad in (0, -1, 1.1, float("inf"), "0.1"):
        with pytest.raises(InvalidOption, match="floor="):
            ResPrune(floor=bad)


def test_without_a_seed_resprunes_first_token_is_the_one_of_the_largest_score():
    image = tokens()
    r = question_relevance(image.features, image.question, "max").clamp(min=0.01)
    expected = select_residual(image.features, 12, weight=r**0.75)
    assert ResPrune(seed="none").rank(image, 12).tolist() == expected.tolist()
    assert expected[0] == (r**0.75 * image.features.square().sum(dim=1)).argmax()
    assert ResPrune(seed="none", alpha=0).rank(image, 12).tolist() == RRQR().rank(image, 12).tolist()


@pytest.mark.parametrize("relevance", ["clip", "llm"])
def test_spare_of_the_other_sign_is_spare_of_the_opposite_relevance(relevance):
    image = tokens()
    opposite = replace(image, clip_relevance=-image.clip_relevance, question=-image.question)
    favoured = SPARE(sign="+", relevance=relevance).rank(image, 20).tolist()
    assert favoured == SPARE(relevance=relevance).rank(opposite, 20).tolist()
    assert favoured != SPARE(relevance=relevance).rank(image, 20).tolist()


@pytest.mark.parametrize("kind", [RRQR, SPARE, ResPrune])
def test_unit_rows_are_raw_ones_weighted_against_their_length(kind):
    image = tokens(dtype=torch.float64)
    image = replace(image, features=image.features * torch.rand(48, 1, dtype=torch.float64))
    unit = replace(image, features=image.features / image.features.norm(dim=1, keepdim=True))
    found = kind(rows="unit").rank(image, 15).tolist()
    assert found == kind().rank(unit, 15).tolist()
    assert found != kind().rank(image, 15).tolist()
    if kind is RRQR:
        weight = image.features.square().sum(dim=1).reciprocal()
        assert found == select_residual(image.features, 15, weight=weight).tolist()


def test_resprune_is_gentler_on_qwen():
    qwen = replace(tokens(), family="qwen2_5_vl")
    assert ResPrune().rank(qwen, 20).tolist() == ResPrune(alpha=0.3).rank(qwen, 20).tolist()
    assert ResPrune().rank(qwen, 20).tolist() != ResPrune().rank(tokens(), 20).tolist()


@pytest.mark.parametrize("method", [SPARE(beta=1e9), ResPrune(alpha=400.0, seed="norm")])
def test_a_very_strong_exponent_ranks_by_relevance(method):
    image = tokens()
    cosines = question_relevance(image.features, image.question, "max")
    relevance = image.clip_relevance if isinstance(method, SPARE) else -cosines
    order = method.rank(image, 3).tolist()
    assert order[1 if isinstance(method, ResPrune) else 0] in relevance.topk(3, largest=False).indices.tolist()


def test_constant_relevance_is_no_relevance():
    assert scaled(torch.full((5,), 0.1)).tolist() == [0] * 5
    assert scaled(torch.full((5,), 0.1) + torch.tensor([0, 1e-8, 0, 0, 0])).tolist() == [0] * 5
    assert scaled(torch.tensor([1.0, 3.0, 2.0])).tolist() == [0, 1, 0.5]


@pytest.mark.parametrize(
    "make",
    [
        lambda: SPARE(beta=-1),
        lambda: SPARE(beta=float("nan")),
        lambda: SPARE(relevance="dino"),
        lambda: ResPrune(alpha="strong"),
        lambda: ResPrune(alpha=-0.1),
        lambda: ResPrune(pool="min"),
        lambda: ResPrune(seed=3),
        lambda: ResPrune(seed=None),
        lambda: ResPrune(rows="l2"),
        lambda: SPARE(sign="0"),
        lambda: SPARE(rows=None),
        lambda: RRQR(rows="normed"),
        lambda: RelevanceTopK("sum"),
        lambda: Random(-1),
        lambda: Random(1.5),
        lambda: Random(2**70),
        lambda: ResPrune(alpha=torch.ones(2)),
    ],
)
def test_bad_options_name_what_is_allowed(make):
    with pytest.raises(InvalidOption, match="allowed"):
        make()
