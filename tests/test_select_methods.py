"""What each of the methods that select before the language model does with its options and signals."""

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import foveate
from conftest import tiny_llava, tiny_prompt
from encoding import encoded_prompt
from foveate import (
    DART,
    DPP,
    RRQR,
    SCOPE,
    CDPruner,
    DivPrune,
    FasterVLM,
    InvalidBudget,
    InvalidFeatures,
    InvalidOption,
    MissingSignal,
    Signal,
    VisPruner,
)
from foveate.families import family_of
from foveate.flow.signals import Source
from foveate.methods.relevance import question_relevance
from foveate.select import select_coverage, select_farthest, select_residual
from test_families import NAMES, model_of
from test_methods import HARD_CASES, tokens
from zoo import ZOO

ROOT = Path(__file__).parent.parent
OURS = (DPP, CDPruner, DivPrune, SCOPE, FasterVLM, VisPruner, DART)


def unit(rows):
    return rows / rows.norm(dim=1, keepdim=True)


# Signals.


@pytest.mark.parametrize("images", [(1,), (2, 1)])
def test_patches_are_what_the_projector_reads(images):
    model, inputs = tiny_llava(), tiny_prompt(images)
    encoded = encoded_prompt(model, inputs, frozenset({Signal.PATCHES}))
    for image in encoded.images:
        assert len(image.patches) == len(image.features)
        projected = model.model.multi_modal_projector(image.patches[None])[0]
        assert torch.allclose(projected, image.features, atol=1e-5)
    assert all(image.patches is None for image in encoded_prompt(model, inputs).images)


def test_patches_keep_the_row_of_the_cls_token_where_the_model_does():
    model = tiny_llava(vision_feature_select_strategy="full")
    inputs = tiny_prompt((1,))
    inputs["input_ids"] = torch.cat([inputs["input_ids"][:, :1], inputs["input_ids"]], dim=1)
    stands = (inputs["input_ids"] == model.config.image_token_id)[0]
    inputs["input_ids"][0, int(stands.nonzero()[0]) - 1] = model.config.image_token_id
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    (image,) = encoded_prompt(model, inputs, frozenset({Signal.PATCHES})).images
    assert len(image.patches) == len(image.features) == 37
    assert torch.equal(image.unlocked().patches, image.patches[1:])


@pytest.mark.parametrize("kind", [SCOPE, VisPruner])
def test_states_are_patches_where_they_are_to_be_had(kind):
    image = tokens()
    without = replace(image, patches=None)
    assert kind().rank(image, 12).tolist() == kind(states="patches").rank(image, 12).tolist()
    assert kind().rank(without, 12).tolist() == kind(states="tokens").rank(image, 12).tolist()
    assert kind(states="tokens").rank(image, 12).tolist() != kind().rank(image, 12).tolist()
    assert kind().settled(image.signals).states == "patches"
    for strict in (kind(states="patches"), kind(faithful=True)):
        assert Signal.PATCHES in strict.needs
        with pytest.raises(MissingSignal, match="patches"):
            strict.rank(without, 12)


def test_a_model_whose_projector_reads_several_patches_has_none(monkeypatch):
    model = tiny_llava()
    family = family_of(model)
    assert Source.find(model, family, SCOPE(), None, None).method.states == "patches"
    monkeypatch.setattr(type(family), "projector", lambda self, model: None)
    assert Source.find(model, family, SCOPE(), None, None).method.states == "tokens"
    with pytest.raises(MissingSignal, match="states before the projector"):
        Source.find(model, family, VisPruner(faithful=True), None, None)


def test_the_report_says_which_states_were_compared(tiny):
    pruned = foveate.prune(tiny, tiny_prompt((1,)), VisPruner(), keep=8)
    assert pruned.report.method == VisPruner(states="patches", attention="cls")


ATTENDING = (SCOPE, FasterVLM, VisPruner)


@pytest.mark.parametrize("kind", [*ATTENDING, foveate.PruMerge, foveate.PruMergePlus, foveate.VisionZip])
def test_attention_is_the_cls_tokens_where_there_is_one_else_received(kind):
    image = tokens()
    absent = {"cls_attention": None, "joint_attention": None}
    without = replace(image, **absent)
    instead = replace(image, **dict.fromkeys(absent, image.received_attention))
    assert kind().settled(image.signals).attention == "cls"
    assert kind().settled(without.signals).attention == "received"
    assert kind().rank(image, 12).tolist() == kind(attention="cls").rank(image, 12).tolist()
    received = kind(attention="received").rank(image, 12).tolist()
    assert received == kind().rank(without, 12).tolist() == kind(attention="cls").rank(instead, 12).tolist()
    assert received != kind().rank(image, 12).tolist()
    assert kind().needs >= {Signal.RECEIVED_ATTENTION}
    assert kind.of_cls in kind().wants
    with pytest.raises(MissingSignal, match="no received_attention"):
        kind(attention="received").rank(replace(image, received_attention=None), 12)
    with pytest.raises(InvalidOption, match="attention="):
        kind(attention="all")
    assert kind(faithful=True, attention="received").needs >= {Signal.RECEIVED_ATTENTION}
    if kind is foveate.VisionZip:  # whose paper has both
        assert (
            kind(faithful=True).rank(without, 12).tolist()
            == kind(faithful=True, attention="received").rank(without, 12).tolist()
        )
        return
    for strict in (kind(attention="cls"), kind(faithful=True)):
        assert kind.of_cls in strict.needs
        with pytest.raises(MissingSignal, match=f"no {kind.of_cls.value}"):
            strict.rank(without, 12)


@pytest.mark.parametrize("kind", ATTENDING)
@pytest.mark.parametrize("animal", NAMES)
def test_every_family_runs_those_that_go_by_attention(animal, kind):
    model, family, inputs = model_of(animal), family_of(model_of(animal)), ZOO[animal].prompt((2, 1))
    pruned = foveate.prune(model, inputs, kind(), keep=0.4)
    method = pruned.report.method
    assert method.attention == ("cls" if family.has_cls(model) else "received")
    with torch.no_grad():
        images = encoded_prompt(model, inputs, method.needs, family).images
    for image, order in zip(images, pruned.orders, strict=True):
        locked = int(image.locked.sum())
        free = (~image.locked).nonzero().flatten()
        assert order[locked:].tolist() == free[method.rank(image.unlocked(), len(order) - locked)].tolist()
    if not family.has_cls(model):
        for strict in (kind(attention="cls"), kind(faithful=True, **states_of(kind))):
            with pytest.raises(MissingSignal, match="no CLS token"):
                foveate.prune(model, inputs, strict, keep=0.4)


def states_of(kind):
    """Options with which a method asks for no patches."""
    return {} if kind is FasterVLM else {"states": "tokens"}


# What each computes.


def test_dpp_is_the_residual_of_unit_rows():
    image = tokens(dtype=torch.float64)
    assert DPP().rank(image, 20).tolist() == RRQR(rows="unit").rank(image, 20).tolist()


def test_cdpruner_negates_cosines_of_clip_and_not_of_the_language_model():
    image = tokens()
    relevance = {"clip": -image.clip_relevance, "llm": question_relevance(image.features, image.question, "mean")}
    for space, signed in relevance.items():
        r = (signed - signed.min() + 1e-6) / (signed.max() - signed.min())
        expected = select_residual(unit(image.features), 20, weight=r.double().square()).tolist()
        assert CDPruner(relevance=space).rank(image, 20).tolist() == expected
    narrow = replace(image, clip_relevance=image.clip_relevance * 1e-5)  # where the floor counts
    r = narrow.clip_relevance.max() - narrow.clip_relevance + 1e-6
    expected = select_residual(unit(image.features), 20, weight=r.double().square()).tolist()
    assert CDPruner().rank(narrow, 20).tolist() == expected
    assert CDPruner().settled(image.signals) == CDPruner("clip", "-")
    assert CDPruner().settled(frozenset({Signal.QUESTION})) == CDPruner("llm", "+")
    opposite = replace(image, clip_relevance=-image.clip_relevance)
    assert CDPruner(sign="+").rank(image, 20).tolist() == CDPruner().rank(opposite, 20).tolist()
    assert CDPruner(faithful=True).needs == {Signal.CLIP_RELEVANCE}


def test_cdpruner_without_a_relevance_that_differs_is_dpp():
    image = HARD_CASES["double"](tokens())
    for relevance in (torch.full((48,), 0.2), torch.empty(0)):
        blind = replace(image, clip_relevance=relevance)
        assert CDPruner().rank(blind, 20).tolist() == DPP().rank(blind, 20).tolist()
    with pytest.raises(InvalidFeatures, match="everywhere"):
        CDPruner(faithful=True).rank(replace(image, clip_relevance=torch.full((48,), 0.2)), 20)
    with pytest.raises(MissingSignal, match="empty"):
        CDPruner(faithful=True).rank(replace(image, clip_relevance=torch.empty(0)), 20)


def test_scope_weighs_coverage_with_the_attention():
    image = tokens(dtype=torch.float64)
    attention = image.cls_attention.double()
    expected = select_coverage(image.patches, 20, weight=attention**2).tolist()
    assert SCOPE(alpha=2).rank(replace(image, cls_attention=attention), 20).tolist() == expected
    added = select_coverage(image.patches, 20, weight=16 * attention, combine="add").tolist()
    assert SCOPE(combine="add", heads=16).rank(replace(image, cls_attention=attention), 20).tolist() == added
    alone = select_coverage(image.patches, 20).tolist()
    assert SCOPE(alpha=0).rank(image, 20).tolist() == alone
    assert SCOPE(alpha=0).needs == frozenset()
    assert SCOPE().rank(replace(image, cls_attention=torch.zeros(48)), 20).tolist() == alone


def test_fastervlm_and_divprune():
    image = tokens()
    assert FasterVLM().rank(image, 9).tolist() == image.cls_attention.topk(9).indices.tolist()
    assert DivPrune().rank(image, 9).tolist() == select_farthest(image.features, 9).tolist()
    for bad in (float("nan"), -0.1):
        attention = image.cls_attention.clone()
        attention[3] = bad
        for method in (FasterVLM(), SCOPE(), VisPruner()):
            with pytest.raises(InvalidFeatures, match="cls_attention"):
                method.rank(replace(image, cls_attention=attention), 9)


@pytest.mark.parametrize("kind", [*OURS, foveate.VisionZip, foveate.PruMerge, foveate.PruMergePlus, foveate.ToMe])
@pytest.mark.parametrize("k", [0, 49, -1, 2.0, True])
def test_a_count_that_no_budget_gives_is_refused(kind, k):
    with pytest.raises(InvalidBudget, match=f"k={k}"):
        kind().rank(tokens(), k)


@pytest.mark.parametrize("method", [CDPruner(), CDPruner(faithful=True), CDPruner("llm"), foveate.SPARE()])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_relevance_that_is_no_number_is_not_taken_for_a_constant_one(method, bad):
    image = tokens()
    image.clip_relevance[3] = image.question[0, 0] = bad
    with pytest.raises(InvalidFeatures, match="NaN"):
        method.rank(image, 9)


def test_vispruner_keeps_its_share_by_attention():
    image = tokens()
    by_attention = FasterVLM().rank(image, 48).tolist()
    for share, important in ((0.5, 8), (0.25, 4), (0.0, 0), (1.0, 17)):
        assert VisPruner(important=share).rank(image, 17)[:important].tolist() == by_attention[:important]
    assert VisPruner(important=1.0).rank(image, 17).tolist() == by_attention[:17]


def test_dart_takes_as_many_for_each_pivot():
    image = tokens(dtype=torch.float64)
    pivots = image.features.abs().sum(dim=1).topk(3).indices.tolist()
    order = DART(image_pivots=3).rank(image, 11).tolist()
    assert order[:3] == pivots
    likeness = unit(image.features) @ unit(image.features[pivots[:1]])[0]
    likeness[pivots] = 2
    assert order[3:6] == likeness.argsort()[:3].tolist()
    assert DART(image_pivots=9).rank(image, 4).tolist() == image.features.abs().sum(dim=1).topk(4).indices.tolist()
    with_text = DART(image_pivots=3, text_pivots=2)
    assert with_text.needs == {Signal.QUESTION}
    assert len(set(with_text.rank(image, 11).tolist())) == 11
    with pytest.raises(MissingSignal, match="question"):
        with_text.rank(replace(image, question=None), 11)


# Faithful.


@pytest.mark.parametrize("kind", OURS)
def test_faithful_agrees_where_nothing_breaks(kind):
    image = tokens(height=8, width=8, d=32, dtype=torch.float64)
    assert kind(faithful=True).rank(image, 16).tolist() == kind().rank(image, 16).tolist() or kind is DART
    if kind is DART:  # the set is walked in another order
        assert kind(faithful=True).rank(image, 16)[:8].tolist() == kind().rank(image, 16)[:8].tolist()


@pytest.mark.parametrize("kind", [DPP, CDPruner, DivPrune, SCOPE, VisPruner])
def test_faithful_refuses_a_zero_row_by_its_number(kind):
    image = tokens()
    image = replace(image, features=image.features.index_fill(0, torch.tensor(5), 0))
    image = replace(image, patches=image.patches.index_fill(0, torch.tensor(range(48)), 0))
    with pytest.raises(InvalidFeatures, match=r"row \d is zero"):
        kind(faithful=True).rank(image, 16)


@pytest.mark.parametrize("kind", [DPP, CDPruner, DivPrune])
def test_faithful_refuses_more_tokens_than_there_are_directions(kind):
    image = HARD_CASES["duplicates"](tokens())
    assert kind(faithful=True).rank(image, 5).tolist() == kind().rank(image, 5).tolist()
    with pytest.raises(InvalidBudget, match=r"k=6.*5"):
        kind(faithful=True).rank(image, 6)


def test_faithful_refuses_counts_that_the_authors_code_cannot_give():
    image = tokens()
    with pytest.raises(InvalidBudget, match="k=18"):
        VisPruner(faithful=True).rank(image, 18)
    with pytest.raises(InvalidBudget, match="k=17"):
        DART(faithful=True).rank(image, 17)
    with pytest.raises(InvalidBudget, match="k=4"):
        DART(faithful=True).rank(image, 4)
    one = tokens(height=1, width=1)
    with pytest.raises(InvalidFeatures, match="1 token"):
        DivPrune(faithful=True).rank(one, 1)
    with pytest.raises(InvalidFeatures, match="0 everywhere"):
        SCOPE(faithful=True).rank(replace(image, cls_attention=torch.zeros(48)), 4)
    added = SCOPE(combine="add", heads=16, faithful=True)  # nothing is lost by adding zeros
    alone = SCOPE(alpha=0).rank(image, 20).tolist()
    assert added.rank(replace(image, cls_attention=torch.zeros(48)), 20).tolist() == alone
    with pytest.raises(InvalidBudget, match="k=14"):
        VisPruner(important=0.75, faithful=True).rank(tokens(height=24, width=24), 14)


@pytest.mark.parametrize(
    "make",
    [
        lambda: CDPruner(relevance="dino"),
        lambda: CDPruner(sign="0"),
        lambda: SCOPE(alpha=-1),
        lambda: SCOPE(combine="max"),
        lambda: SCOPE(heads=0),
        lambda: SCOPE(states="keys"),
        lambda: SCOPE(combine="add", faithful=True),
        lambda: VisPruner(important=1.5),
        lambda: VisPruner(important=-0.5),
        lambda: VisPruner(states=None),
        lambda: DART(image_pivots=0),
        lambda: DART(text_pivots=-1),
        lambda: DART(image_pivots=2.0),
    ],
)
def test_bad_options_name_what_is_allowed(make):
    with pytest.raises(InvalidOption, match="allowed"):
        make()


# Half precision, and what the docs say.


@pytest.mark.parametrize("name", ["dpp", "cdpruner", "divprune", "scope", "fastervlm", "vispruner", "dart"])
def test_in_half_precision_a_method_keeps_what_float64_keeps_of_the_rounded_image(name, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    half_precision = importlib.import_module("half_precision")
    images = list(half_precision.images_of(144))
    assert len(images) == 4
    for image in images:
        for dtype in half_precision.HALVES.values():
            for k in (16, 48):
                own, _ = half_precision.overlaps(name, image, dtype, k)
                assert own >= 0.95


def test_the_docs_hold_the_table_of_methods(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert importlib.import_module("methods_table").table() in page
    names = importlib.import_module("half_precision").NAMES
    half = page.split("<!-- tools/half_precision.py -->")[1]
    assert all(f"| {foveate.METHODS[name].__name__} |" in half for name in names)


@pytest.mark.parametrize("name", foveate.METHODS)
def test_every_method_states_its_facts(name):
    method = foveate.METHODS[name]
    assert method.acts
    assert method.complexity
    assert isinstance(method.nested, bool)
    assert isinstance(method.countable, bool)


def test_prompts_of_several_images_prune_with_patches(tiny):
    for method in (SCOPE(), VisPruner()):
        pruned = foveate.prune(tiny, tiny_prompt((2, 1)), method, keep=7)
        assert [len(set(kept.tolist())) for kept in pruned.kept] == [7, 7, 7]
