"""prepare() and keep(): one encoding for many methods and budgets, each as prune() alone would give it."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch

import foveate
from conftest import noise, tiny_prompt
from foveate import METHODS, SPARE, RelevanceTopK, ResPrune
from foveate.budget import Budget
from foveate.methods import EachImage
from foveate.prune import prepare
from foveate.select.checks import Undecided, is_deferred
from foveate.settings import Settings
from foveate.tokens import Signal
from zoo import ZOO

ROWS = [(1, "Is there a red circle?"), (2, "How many small blue stars are in the whole image?")]
ALL = [method() for method in METHODS.values()]


@dataclass(frozen=True)
class Spy(EachImage):
    """Keeps the first tokens, and remembers what it was shown and asked."""

    source: ClassVar[str] = "test"
    nested: ClassVar[bool] = True
    asks: frozenset = frozenset()
    shown: list = field(default_factory=list, compare=False)
    asked: list = field(default_factory=list, compare=False)

    @property
    def needs(self):
        return self.asks

    def rank_one(self, tokens, k):
        self.shown.append(tokens.signals)
        self.asked.append(k)
        return torch.arange(k)


@dataclass(frozen=True)
class Loose(Spy):
    """The same without the promise that its rankings are nested."""

    nested: ClassVar[bool] = False


@pytest.fixture(scope="module")
def prompt(bundled):
    _, processor = bundled
    texts = [f"USER: {'<image>' * n}\n{question} ASSISTANT:" for n, question in ROWS]
    return processor(images=[noise(s) for s in range(3)], text=texts, padding=True, return_tensors="pt")


@pytest.fixture(scope="module")
def together(bundled, prompt):
    """All methods of the table, prepared at once; the question is that of each row."""
    return prepare(bundled[0], prompt, ALL)


def equal(ours, theirs):
    assert [k.tolist() for k in ours.kept] == [k.tolist() for k in theirs.kept]
    assert [k.tolist() for k in ours.orders] == [k.tolist() for k in theirs.orders]
    assert ours.grids == theirs.grids
    assert ours.rows == theirs.rows
    assert list(ours) == list(theirs)
    for name in ("method", "tagger", "tokens_before", "tokens_after", "prompt_before", "prompt_after"):
        assert getattr(ours.report, name) == getattr(theirs.report, name)
    for name in ("input_ids", "attention_mask", "position_ids"):
        assert torch.equal(ours[name], theirs[name])


@pytest.mark.parametrize("method", ALL, ids=repr)
@pytest.mark.parametrize(("keep", "positions"), [(64, "original"), (0.02, "compact"), (1.0, "original")])
def test_keep_equals_prune(bundled, prompt, together, method, keep, positions):
    model, _ = bundled
    ours = together.keep(method, keep, positions)
    theirs = foveate.prune(model, prompt, method, keep=keep, positions=positions)
    equal(ours, theirs)
    with torch.no_grad():
        assert torch.equal(model(**ours).logits, model(**theirs).logits)
    assert ours.report.residual_energy == pytest.approx(theirs.report.residual_energy, abs=1e-12)


@pytest.mark.parametrize("method", ALL, ids=repr)
def test_prefixes_of_one_ranking_equal_prune_at_every_budget(bundled, prompt, method):
    model, _ = bundled
    prepared = prepare(model, prompt, [method])
    for keep in (192, 128, 33, 32, 1, 100):
        equal(prepared.keep(method, keep), foveate.prune(model, prompt, method, keep=keep))


def test_control_one_methods_order_is_not_anothers(together):
    """Two may keep the same tokens of a noise image by chance; in the same order, for all images, no two do."""
    shown = [together.keep(method, 64) for method in ALL]
    features = [torch.cat(list(pruned["mm_encoder_outputs"]["image"].pooler_output)) for pruned in shown]
    orders = [[order.tolist() for order in pruned.orders] for pruned in shown]
    pairs = [(i, j) for i in range(len(ALL)) for j in range(i)]
    assert not [(i, j) for i, j in pairs if orders[i] == orders[j] and torch.equal(features[i], features[j])]


@dataclass(frozen=True)
class Twice(Spy):
    """Keeps one token several times."""

    def rank_one(self, tokens, k):
        return torch.zeros(k, dtype=torch.long)


def test_an_order_that_was_refused_is_refused_again(tiny):
    prepared = prepare(tiny, tiny_prompt((1,)), [Twice()])
    for keep in (5, 5, 4):
        with pytest.raises(foveate.InvalidOption, match="distinct"):
            prepared.keep(Twice(), keep)


@dataclass(frozen=True)
class Unsure(Spy):
    """Is undecided about the second image as long as checks are deferred."""

    def rank_one(self, tokens, k):
        self.asked.append(k)
        if is_deferred() and len(self.asked) > 1:
            raise Undecided
        return torch.zeros(k, dtype=torch.long) if k == 9 else torch.arange(k)  # the first alone is wrong


def test_work_done_again_is_checked_again(tiny):
    """Two groups: checks of the first were collected, and dropped, when the second was undecided."""
    with pytest.raises(foveate.InvalidOption, match="distinct"):
        prepare(tiny, tiny_prompt((1, 2)), [Unsure()]).keep_as(Unsure(), Settings(Budget.of_one(None, 9)))


def test_a_video_is_not_taken_for_its_first_frame():
    """Shares of 3, 2 and 2: the first frame is ranked by itself, and begins where the video does."""
    model, inputs = ZOO["llava_next_video"].build(), ZOO["llava_next_video"].prompt((1,))
    prepared, alone = (prepare(model, inputs, [foveate.NormTopK()]) for _ in range(2))
    prepared.keep_as(foveate.NormTopK(), Settings(Budget.of(7), per_frame=True))
    equal(prepared.keep(foveate.NormTopK(), 3), alone.keep(foveate.NormTopK(), 3))


def test_images_are_encoded_once(tiny):
    calls = []
    hook = tiny.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    methods = [foveate.RRQR(), foveate.Random(), foveate.NormTopK(), ResPrune(alpha=0)]
    prepared = prepare(tiny, tiny_prompt((1, 2)), methods)
    for method in methods:
        for keep in (20, 9, 3):
            prepared.keep(method, keep)
    hook.remove()
    assert len(calls) == 1


@pytest.mark.parametrize("signal", [None, *Signal])
def test_a_method_is_shown_the_signals_it_needs_and_no_others(bundled, prompt, signal):
    spy = Spy(frozenset({signal} - {None}))
    greedy = [SPARE(relevance="clip"), ResPrune(seed="cls"), RelevanceTopK()]
    prepare(bundled[0], prompt, [*greedy, spy]).keep(spy, 9)
    assert spy.shown == [spy.asks] * 3


def test_auto_options_settle_as_they_do_alone(bundled, prompt, tmp_path):
    model, _ = bundled
    methods = [SPARE(), SPARE(relevance="llm"), SPARE(relevance="clip"), ResPrune(), ResPrune(seed="norm")]
    prepared = prepare(model, prompt, methods)
    for method in methods:
        equal(prepared.keep(method, 16), foveate.prune(model, prompt, method, keep=16))
    assert prepared.keep(SPARE(), 16).report.tagger is None  # it turned to CLIP, the others' nouns are not its own
    assert prepared.keep(ResPrune(), 16).report.tagger is not None


def test_the_question_may_be_given(bundled, prompt):
    model, _ = bundled
    given = prepare(model, prompt, [ResPrune(alpha=3.0)], question="How many letters are there?")
    alone = foveate.prune(model, prompt, ResPrune(alpha=3.0), keep=30, question="How many letters are there?")
    equal(given.keep(ResPrune(alpha=3.0), 30), alone)


def test_a_nested_method_ranks_once_for_the_largest_budget(tiny):
    nested, loose = Spy(), Loose()
    prepared = prepare(tiny, tiny_prompt((1, 1)), [nested, loose])
    for method in (nested, loose):
        for keep, positions in ((20, "original"), (20, "compact"), (9, "original"), (3, "original")):
            pruned = prepared.keep(method, keep, positions)
            assert [k.tolist() for k in pruned.kept] == [list(range(keep))] * 2
    assert nested.asked == [20, 20]
    assert loose.asked == [20, 20, 9, 9, 3, 3]


def test_a_held_ranking_is_not_written_to(tiny):
    """An image at the very end keeps its last token in place of the last of each budget."""
    inputs = tiny_prompt((1,), text=(7, 0))
    prepared = prepare(tiny, inputs, [foveate.RRQR()])
    for keep in (20, 9, 3, 20):
        equal(prepared.keep(foveate.RRQR(), keep), foveate.prune(tiny, inputs, foveate.RRQR(), keep=keep))


def test_reports_have_their_own_seconds(tiny):
    prepared = prepare(tiny, tiny_prompt(), [foveate.RRQR()], timed=True)
    first, second = prepared.keep(foveate.RRQR(), 9), prepared.keep(foveate.RRQR(), 5)
    assert list(prepared.seconds) == ["encode", "relevance"]
    assert list(first.report.seconds) == ["encode", "relevance", "select", "shrink"]
    assert first.report.seconds["encode"] == second.report.seconds["encode"]
    assert first.report.seconds is not second.report.seconds


def test_a_method_that_was_not_prepared_for(tiny):
    prepared = prepare(tiny, tiny_prompt(), [foveate.RRQR()])
    with pytest.raises(foveate.InvalidOption, match=r"Random\(seed=1\).*RRQR"):
        prepared.keep(foveate.Random(1), 5)
    with pytest.raises(foveate.InvalidOption, match="SPARE"):
        prepared.keep(SPARE, 5)


@pytest.mark.parametrize("options", [{"keep": 0}, {"keep": 5, "positions": "random"}])
def test_bad_settings(tiny, options):
    with pytest.raises((foveate.InvalidBudget, foveate.InvalidOption), match="allowed"):
        prepare(tiny, tiny_prompt(), [foveate.RRQR()]).keep(foveate.RRQR(), **options)


def test_one_missing_signal_raises_before_any_work(tiny, monkeypatch):
    monkeypatch.setattr(tiny.model.vision_tower, "forward", None)  # any work would fail
    with pytest.raises(foveate.MissingSignal, match="RelevanceTopK"):
        prepare(tiny, tiny_prompt(), [foveate.RRQR(), RelevanceTopK()])
    with pytest.raises(foveate.InvalidOption, match="RRQR"):
        prepare(tiny, tiny_prompt(), [foveate.RRQR])
