"""VisionZip, PruMerge, PruMerge+ and ToMe: a second implementation in loops, what always holds, stock models.

The loops know no tensor operation of the library's; the models' own projections give them queries and keys.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import foveate
from conftest import PROMPTS, tiny_llava, tiny_prompt
from encoding import carried, encoded_prompt
from foveate import METHODS, InvalidOption, PruMerge, PruMergePlus, Signal, ToMe, VisionZip, VisualTokens
from foveate.families import FAMILIES
from foveate.methods.merging.mixing import Mixing
from foveate.methods.merging.prumergeplus import sampled
from foveate.prune import prepare
from foveate.select import count_outliers, merge_bipartite, merge_contextual, merge_neighbours
from taps import attention_tap, key_tap
from test_families import NAMES, model_of
from test_family_signals import family_of, kind_of
from test_merging import close, replaced
from zoo import ZOO

NEW = {name: METHODS[name]() for name in ("visionzip", "prumerge", "prumergeplus", "tome")}
EACH = pytest.mark.parametrize("name", NEW)


# The second implementation: lists and loops over numpy rows, in float64.


def cosine(a, b):
    length = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / length) if length > 0 else 0.0


def ranked(scores, among=None):
    among = range(len(scores)) if among is None else among
    return sorted(among, key=lambda i: (-scores[i], i))


def by_loops(name, states, keys, scores, k):
    """Places and what stands there, of ``states [N, Dv]``, ``keys [N, heads, d]`` and ``scores [N]``."""
    states, keys, scores = (np.asarray(x, dtype=np.float64) for x in (states, keys, scores))
    return {"visionzip": zip_loops, "tome": tome_loops}.get(name, merge_loops(name))(states, keys, scores, k)


def zip_loops(states, keys, scores, k):
    keys = keys.mean(1)
    contextual = min(k - 1, max(1, round(k * 10 / 64)))
    dominant = ranked(scores)[: k - contextual]
    rest = [i for i in range(len(states)) if i not in dominant]
    targets = [rest[j * (len(rest) // contextual)] for j in range(contextual)]
    taken = {target: [] for target in targets}
    for i in rest:
        if targets and i not in targets:
            taken[max(targets, key=lambda target: (cosine(keys[i], keys[target]), -target))].append(states[i])
    new = [states[t] + (sum(taken[t]) / len(taken[t]) if taken[t] else 0) for t in targets]
    return dominant + targets, np.array([states[i] for i in dominant] + new)


def merge_loops(name):
    def run(states, keys, scores, k):
        n, keys, m = len(states), keys.reshape(len(keys), -1), max(1, k - 1)
        attended = ranked(scores)[: m if name == "prumerge" else max(1, int(m / 4 + 0.5))]
        rest = [i for i in range(n) if i not in attended]
        spread = m - len(attended)
        chosen = attended + [rest[(2 * j + 1) * len(rest) // (2 * spread)] for j in range(spread)]
        new = []
        for i in chosen:
            others = sorted((j for j in range(n) if j != i), key=lambda j: (-cosine(keys[i], keys[j]), j))[:32]
            new.append(states[i] + sum((scores[j] * states[j] for j in others), np.zeros(states.shape[1])))
        left = [i for i in range(n) if i not in chosen]
        if k == 1:
            return chosen, np.array(new)
        new.append(sum(scores[j] * states[j] for j in left))
        return [*chosen, ranked(scores, left)[0]], np.array(new)

    return run


def tome_loops(states, keys, scores, k):
    groups = {i: [i] for i in range(len(states))}
    keys = keys.mean(1)
    while len(groups) > k:
        places = sorted(groups)
        mean = {i: sum(keys[j] for j in groups[i]) / len(groups[i]) for i in places}
        best = {}
        for a in places[1::2]:
            into = max(places[0::2], key=lambda b: (cosine(mean[a], mean[b]), -b))
            best[a] = (cosine(mean[a], mean[into]), into)
        for a in sorted(best, key=lambda a: (-best[a][0], a))[: len(groups) - k]:
            groups[best[a][1]] = groups[best[a][1]] + groups.pop(a)
    places = sorted(groups)
    return places, np.array([sum(states[j] for j in groups[i]) / len(groups[i]) for i in places])


def image(n, seed=0, dtype=torch.float64, d=5):
    generator = torch.Generator().manual_seed(seed)
    return VisualTokens(
        features=torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype),
        grids=((1, n),),
        cls_attention=torch.rand(n, generator=generator, dtype=torch.float64),
        joint_attention=torch.rand(n, generator=generator, dtype=torch.float64) / n,
        received_attention=torch.rand(n, generator=generator, dtype=torch.float64) / n,
        keys=torch.randn(n, 2, 3, generator=generator, dtype=torch.float64).to(dtype),
        patches=torch.randn(n, d + 2, generator=generator, dtype=torch.float64).to(dtype),
    )


def scores_of(name, tokens):
    return tokens.cls_attention if name == "visionzip" else tokens.joint_attention


@st.composite
def sizes(draw, largest=60):
    n = draw(st.integers(1, largest))
    return n, draw(st.integers(1, n))


@EACH
@given(sizes(), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_they_equal_the_loops(name, size, seed):
    n, k = size
    tokens = image(n, seed)
    places, new = by_loops(name, tokens.patches, tokens.keys, scores_of(name, tokens), k)
    assert NEW[name].rank(tokens, k).tolist() == places
    assert torch.allclose(NEW[name].merge(tokens, k), torch.tensor(new), atol=1e-12)
    features = replace(NEW[name], space="features")
    _, new = by_loops(name, tokens.features, tokens.keys, scores_of(name, tokens), k)
    assert torch.allclose(features.merge(tokens, k), torch.tensor(new), atol=1e-12)
    assert torch.allclose(NEW[name].merge(replace(tokens, patches=None), k), torch.tensor(new), atol=1e-12)


BROKEN = {
    "all zero": lambda x: x * 0,
    "all equal": lambda x: x * 0 + 1,
    "two kinds": lambda x: x[torch.arange(len(x)) % 2],
    "zero rows": lambda x: x * (torch.arange(len(x)) % 3 > 0).reshape(-1, *[1] * (x.dim() - 1)),
    "huge": lambda x: x * 1e30,
    "tiny": lambda x: x * 1e-30,
}


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", BROKEN)
@given(size=sizes(40), seed=st.integers(0, 3))
@settings(max_examples=12, deadline=None)
def test_always_k_distinct_places_and_finite_tokens(name, case, dtype, size, seed):
    n, k = size
    tokens = image(n, seed, dtype)
    small = BROKEN[case] if dtype != torch.float16 or case not in ("huge", "tiny") else lambda x: x
    tokens = replace(tokens, keys=small(tokens.keys))
    if case not in ("huge", "tiny"):
        attention = small(tokens.cls_attention) / n
        tokens = replace(tokens, cls_attention=attention, joint_attention=attention, patches=small(tokens.patches))
    places, merged = NEW[name].rank(tokens, k), NEW[name].merge(tokens, k)
    assert places.dtype == torch.long
    assert len(set(places.tolist())) == len(places) == k
    assert 0 <= int(places.min()) <= int(places.max()) < n
    assert merged.shape == (k, tokens.patches.shape[1])
    assert merged.dtype == dtype
    assert bool(torch.isfinite(merged).all())


@EACH
@given(sizes(40), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_shares_are_of_all_tokens(name, size, seed):
    n, k = size
    tokens = image(n, seed)
    shares = NEW[name].mix(tokens, k)
    assert shares.shape == (k, n)
    assert bool((shares >= 0).all())
    if name == "tome":
        assert torch.allclose(shares.sum(1), torch.ones(k, dtype=shares.dtype))
        assert torch.equal((shares > 0).sum(0), torch.ones(n, dtype=torch.long))
    elif k > 1:
        assert bool((shares > 0).any(0).all())  # nothing is lost
    own = shares[torch.arange(k), NEW[name].rank(tokens, k)]
    assert bool((own[: k - 1] > 0).all())


@given(sizes(50), st.integers(0, 9), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_prumerge_does_not_depend_on_the_order_of_tokens(size, seed, random):
    n, k = size
    tokens = image(n, seed)
    order = list(range(n))
    random.shuffle(order)
    order = torch.tensor(order)
    names = ("features", "joint_attention", "keys", "patches")
    moved = replace(tokens, **{name: getattr(tokens, name)[order] for name in names})
    assert torch.equal(order[PruMerge().rank(moved, k)], PruMerge().rank(tokens, k))
    assert torch.allclose(PruMerge().merge(moved, k), PruMerge().merge(tokens, k), atol=1e-12)


@EACH
def test_scaled_keys_and_states_change_nothing_but_the_scale(name):
    tokens = image(48)
    larger = replace(tokens, keys=tokens.keys * 7, patches=tokens.patches * 3)
    assert torch.equal(NEW[name].rank(larger, 17), NEW[name].rank(tokens, 17))
    assert torch.allclose(NEW[name].merge(larger, 17), 3 * NEW[name].merge(tokens, 17), atol=1e-12)


# Options, and what the authors' code breaks at.


def test_visionzip_splits_k_as_the_paper_does():
    assert [VisionZip().split(k) for k in (64, 128, 192)] == [(54, 10), (108, 20), (162, 30)]
    assert [VisionZip().split(k) for k in (1, 2, 3)] == [(1, 0), (1, 1), (2, 1)]
    assert VisionZip(faithful=True).split(1) == (0, 1)
    assert VisionZip(0).split(9) == (9, 0)
    tokens = image(30)
    assert VisionZip(0).rank(tokens, 9).tolist() == ranked(tokens.cls_attention.tolist())[:9]
    assert torch.equal(VisionZip(0).merge(tokens, 9), tokens.patches[VisionZip(0).rank(tokens, 9)])


def test_a_zero_target_takes_in_everything_only_in_the_authors_way():
    keys = torch.rand(12, 3, dtype=torch.float64)
    targets, _ = merge_contextual(keys, torch.tensor([3, 7]), 2)
    keys[targets[1]] = 0
    _, ours = merge_contextual(keys, torch.tensor([3, 7]), 2)
    assert (ours > 0).sum(1).tolist() == [9, 1]
    _, theirs = merge_contextual(keys, torch.tensor([3, 7]), 2, faithful=True)
    assert (theirs > 0).sum(1).tolist() == [1, 9]


def test_prumerge_of_few_tokens_and_of_one():
    tokens = image(20)
    with pytest.raises(foveate.InvalidFeatures, match="20 rows with faithful=True: allowed are 33"):
        PruMerge(faithful=True).merge(tokens, 5)
    assert PruMerge().rank(tokens, 1).tolist() == [int(tokens.joint_attention.argmax())]
    many = image(40)
    everything = many.joint_attention @ many.patches
    assert torch.allclose(PruMerge(faithful=True).merge(many, 1)[0], everything)


def test_outliers_are_counted_per_image():
    scores = torch.full((100,), 0.01)
    assert count_outliers(scores) == 0
    scores[:7] = 0.5
    assert count_outliers(scores) == 7
    percentile = np.percentile(np.arange(50.0) ** 5, [25, 75])
    above = (np.arange(50.0) ** 5 > percentile[1] + 1.5 * (percentile[1] - percentile[0])).sum()
    assert count_outliers(torch.arange(50.0) ** 5) == above > 0


def test_prumergeplus_takes_a_quarter_by_attention_and_spreads_the_others():
    tokens = image(576)
    places = PruMergePlus().rank(tokens, 65).tolist()
    assert places[:16] == ranked(tokens.joint_attention.tolist())[:16]
    gaps = np.diff(sorted(places[16:64]))
    assert len(gaps) == 47
    assert gaps.min() >= 11
    assert gaps.max() <= 20


@pytest.mark.parametrize(
    ("tokens", "error", "match"),
    [
        (lambda: image(36), foveate.InvalidFeatures, "36 tokens with faithful=True: allowed are 576"),
        (
            lambda: replace(image(576), joint_attention=torch.full((576,), 1e-3)),
            foveate.InvalidFeatures,
            "ratio=0.0 with faithful=True: allowed is above 0",
        ),
    ],
    ids=["size", "no outlier"],
)
def test_faithful_prumergeplus_raises_where_the_authors_code_does(tokens, error, match):
    with pytest.raises(error, match=match):
        PruMergePlus(faithful=True).rank(tokens(), 9)
    assert len(PruMergePlus().rank(tokens(), 9)) == 9


def test_the_authors_sampling_never_takes_the_last_of_576_tokens():
    scores = torch.arange(576.0).flip(0)
    for ratio, step in ((0.25, 1), (1 / 16, 5)):
        found = set(sampled(scores, ratio).tolist())
        assert found == {*range(int(576 * ratio)), *range(0, 575, step)}


def test_tome_in_one_round_and_in_several():
    tokens = image(37)
    assert len(ToMe(faithful=True).rank(tokens, 19)) == 19
    with pytest.raises(foveate.InvalidBudget, match="k=18 of 37 with faithful=True: allowed is 19 or more"):
        ToMe(faithful=True).rank(tokens, 18)
    zero = replace(tokens, keys=tokens.keys * (torch.arange(37) != 4)[:, None, None])
    with pytest.raises(foveate.InvalidFeatures, match=r"keys\[4\] is zero with faithful=True"):
        ToMe(faithful=True).rank(zero, 30)
    assert torch.allclose(ToMe().merge(tokens, 1)[0], tokens.patches.mean(0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: VisionZip(-0.1),
        lambda: VisionZip(1.5),
        lambda: VisionZip(0, faithful=True),
        lambda: VisionZip(space="pixels"),
        lambda: VisionZip(attention="text"),
        lambda: ToMe(faithful="yes"),
        lambda: PruMerge(0),
        lambda: PruMergePlus(2.5),
    ],
)
def test_bad_options_name_what_is_allowed(make):
    with pytest.raises(InvalidOption, match="allowed"):
        make()


@pytest.mark.parametrize(
    "call",
    [
        lambda x: merge_bipartite(x[0], 2),
        lambda x: merge_bipartite(x * float("nan"), 2),
        lambda x: merge_contextual(x, torch.tensor([1, 1]), 2),
        lambda x: merge_contextual(x, torch.tensor([9]), 2),
        lambda x: merge_neighbours(x, torch.ones(5), torch.tensor([1])),
        lambda x: merge_neighbours(x, -torch.ones(6), torch.tensor([1])),
        lambda x: merge_neighbours(x, torch.full((6,), float("inf")), torch.tensor([1])),
    ],
)
def test_engines_refuse_what_is_no_image(call):
    with pytest.raises(foveate.InvalidFeatures, match="allowed"):
        call(torch.rand(6, 3))


@pytest.mark.parametrize("k", [0, 7, 2.0, True])
def test_engines_refuse_counts_that_cannot_be(k):
    with pytest.raises(foveate.InvalidBudget, match="allowed"):
        merge_bipartite(torch.rand(6, 3), k)
    if k in (0, 7):
        with pytest.raises(foveate.InvalidBudget, match="allowed"):
            merge_contextual(torch.rand(6, 3), torch.tensor([0]), 6 if k else -1)


# Signals, against the stock towers.


def tower_by_hand(model, pixels, layer=-2):
    """States that the projector reads, keys, and CLS attention of both kinds: ``[images, 36, ...]``."""
    tower = model.model.vision_tower
    states = tower(pixels, output_hidden_states=True).hidden_states
    block = getattr(tower, "vision_model", tower).encoder.layers[layer]
    before = block.layer_norm1(states[layer - 1])
    queries, keys = block.self_attn.q_proj(before), block.self_attn.k_proj(before)
    joint = (queries[:, :1] @ keys.transpose(1, 2) * 32**-0.5).softmax(-1)[:, 0, 1:]
    q, k = (x.unflatten(-1, (4, 8)) for x in (queries, keys))
    heads = (torch.einsum("bhd,bnhd->bhn", q[:, 0], k) * 8**-0.5).softmax(-1).mean(1)[:, 1:]
    return states[layer][:, 1:], k[:, 1:], heads, joint


WANTED = frozenset({Signal.PATCHES, Signal.KEYS, Signal.CLS_ATTENTION, Signal.JOINT_ATTENTION})


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("layer", [-2, -1])
@torch.no_grad()
def test_signals_of_clip_are_its_own_projections(backend, layer):
    model, inputs = tiny_llava(vision_feature_layer=layer), tiny_prompt((1, 2))
    model.set_attn_implementation(backend)
    found = encoded_prompt(model, inputs, WANTED).images
    expected = tower_by_hand(model, inputs["pixel_values"], layer)
    names = ("patches", "keys", "cls_attention", "joint_attention")
    for name, values in zip(names, expected, strict=True):
        ours = torch.stack([getattr(tokens, name) for tokens in found])
        assert torch.allclose(ours, values, atol=1e-6), name


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_keys_are_carried_channel_by_channel_as_attention_is(name):
    """The carried keys of each family are those of its layer, each channel carried like a score."""
    model, family, inputs = model_of(name), family_of(name), ZOO[name].prompt((2, 1))
    kind = kind_of(inputs)
    with key_tap(family.attention(model, kind)) as captured:
        tokens = encoded_prompt(model, inputs, frozenset({Signal.KEYS}), family).images
    heads, width = captured[0].shape[1:]
    for head, channel in ((0, 0), (heads - 1, width - 1)):
        scores = carried(family, model, inputs, kind, [keys[:, head, channel] for keys in captured])
        for image_tokens, expected in zip(tokens, scores, strict=True):
            ours = image_tokens.keys[:, head, channel]
            free = ours[~image_tokens.locked] if len(expected) < len(ours) else ours
            assert torch.allclose(free, expected, atol=1e-6)
            assert bool((ours[image_tokens.locked] == 0).all()) or len(expected) == len(ours)


class Packed(torch.nn.Module):
    """An attention layer that has sequences of 3 and 5 in one, as flash attention is told of them."""

    def __init__(self):
        super().__init__()
        self.config = transformers.LlamaConfig(attn_implementation="packed")

    def forward(self, query, key):
        function = transformers.AttentionInterface()[self.config._attn_implementation]
        return function(self, query, key, key, None, scaling=0.5, cu_seq_lens_q=torch.tensor([0, 3, 8]))


def test_sequences_that_are_packed_in_one_are_told_apart():
    query, key = torch.randn(1, 4, 8, 2), torch.randn(1, 2, 8, 2)  # two heads of queries to one of keys
    transformers.AttentionInterface.register("packed", lambda module, *given, **options: (given[0], None))
    layer = Packed()
    with key_tap(layer) as keys, attention_tap(layer, first=True, joint=True) as joint:
        layer(query, key)
    assert torch.equal(torch.cat(keys), key[0].transpose(0, 1))
    assert [len(part) for part in keys] == [len(part) for part in joint] == [3, 5]
    wide = key.repeat_interleave(2, dim=1)[0].transpose(0, 1).flatten(1)
    asked = query[0].transpose(0, 1).flatten(1)
    for part, rows in zip(joint, (slice(0, 3), slice(3, 8)), strict=True):
        assert torch.allclose(part, (wide[rows] @ asked[rows][0] * 0.5 / 2).softmax(0), atol=1e-6)


# Models: what stands in the prompt is what the stock model is given by hand.


def merged_by_hand(model, inputs, name, k):
    """Per image, places in raster order and projected tokens there."""
    found = []
    for states, keys, heads, joint in zip(*tower_by_hand(model, inputs["pixel_values"]), strict=True):
        places, new = by_loops(name, states, keys, heads if name == "visionzip" else joint, k)
        order = np.argsort(places)
        projected = model.model.multi_modal_projector(torch.tensor(new[order], dtype=torch.float32)[None])[0]
        found.append(([places[i] for i in order], projected))
    return found


@EACH
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("keep", [9, 25])
@torch.no_grad()
def test_logits_equal_embeddings_replaced_by_hand(tiny, name, prompt, keep):
    inputs = tiny_prompt(**PROMPTS[prompt])
    pruned = foveate.prune(tiny, inputs, NEW[name], keep=keep)
    by_hand = merged_by_hand(tiny, inputs, name, keep)
    assert [kept.tolist() for kept in pruned.kept] == [places for places, _ in by_hand]
    full, stays = replaced_each(tiny, inputs, by_hand)
    assert close(pruned, tiny, full, stays)
    own = foveate.prune(tiny, inputs, replace(NEW[name], space="features"), keep=keep)
    assert not close(own, tiny, full, stays, atol=1e-2)  # control: not what the projector makes of sums


def replaced_each(model, inputs, by_hand):
    """`replaced`, with places of each image's own."""
    full, _ = replaced(model, inputs, [tokens for _, tokens in by_hand], list(range(len(by_hand[0][0]))))
    embeddings, mask = full["inputs_embeds"], inputs["attention_mask"].clone()
    embeddings = model.get_input_embeddings()(inputs["input_ids"]).clone()
    columns = (inputs["input_ids"] == model.config.image_token_id).nonzero().reshape(-1, 36, 2)
    for marks, (places, tokens) in zip(columns, by_hand, strict=True):
        mask[marks[:, 0], marks[:, 1]] = 0
        rows, at = marks[places].T
        mask[rows, at] = 1
        embeddings[rows, at] = tokens
    return {**full, "inputs_embeds": embeddings, "attention_mask": mask}, mask.bool()


@EACH
@torch.no_grad()
def test_batch_mates_do_not_matter(tiny, name):
    inputs = tiny_prompt((1, 1, 1))
    pruned = foveate.prune(tiny, inputs, NEW[name], keep=9)
    for row in range(3):
        alone = {key: value[row : row + 1] for key, value in inputs.items()}
        single = foveate.prune(tiny, alone, NEW[name], keep=9)
        assert single.kept[0].tolist() == pruned.kept[row].tolist()
        ours, theirs = (p["mm_encoder_outputs"]["image"].pooler_output for p in (pruned, single))
        assert torch.allclose(ours[row], theirs[0], atol=1e-5)


@EACH
def test_gradients_reach_the_vision_tower_through_a_forward(tiny, name):
    weight = tiny.model.vision_tower.embeddings.patch_embedding.weight
    with foveate.attach(tiny, NEW[name], keep=9):
        tiny(**tiny_prompt()).logits.sum().backward()
    assert weight.grad.abs().sum() > 0
    tiny.zero_grad()


@EACH
def test_half_precision_models(name):
    model = tiny_llava().to(torch.bfloat16)
    pruned = foveate.prune(model, tiny_prompt((1, 2)), NEW[name], keep=9)
    assert pruned["mm_encoder_outputs"]["image"].pooler_output[0].dtype == torch.bfloat16
    assert model.generate(**pruned, max_new_tokens=3).shape == (2, pruned["input_ids"].shape[1] + 3)


@EACH
@torch.no_grad()
def test_a_handed_on_cls_row_stays_and_is_not_merged(name):
    model = tiny_llava(vision_feature_select_strategy="full")
    inputs = tiny_prompt((1,), tokens=37)
    pruned = foveate.prune(model, inputs, NEW[name], keep=10)
    (places, tokens), *_ = merged_by_hand(model, inputs, name, 9)
    assert pruned.kept[0].tolist() == [0, *(place + 1 for place in places)]
    ours = pruned["mm_encoder_outputs"]["image"].pooler_output[0]
    every = model.model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output[0]
    assert torch.equal(ours[0], every[0])
    assert torch.allclose(ours[1:], tokens, atol=1e-4)


@pytest.mark.parametrize("animal", NAMES)
@EACH
@torch.no_grad()
def test_every_family_runs_them(animal, name):
    """Where the projector takes several patches per token, or tiles cut later, features are merged."""
    model, family, inputs = model_of(animal), family_of(animal), ZOO[animal].prompt((2, 1))
    pruned = foveate.prune(model, inputs, NEW[name], keep=0.4)
    method = pruned.report.method
    assert method.space == ("patches" if family.projector(model) is not None else "features")
    if name != "tome":
        assert method.attention == ("cls" if family.has_cls(model) else "received")
    found = encoded_prompt(model, inputs, method.needs, family).images
    for tokens, order in zip(found, pruned.orders, strict=True):
        locked = int(tokens.locked.sum())
        free = tokens.unlocked()
        states = free.patches if method.space == "patches" else free.features
        scores = states[:, 0] * 0 if name == "tome" else method.scores(free, 1)
        places, _ = by_loops(name, states, free.keys, scores, len(order) - locked)
        where = (~tokens.locked).nonzero().flatten()
        assert order[locked:-1].tolist() == where[places].tolist()[:-1]
    assert model(**pruned).logits.isfinite().all()


@EACH
def test_they_refuse_what_they_cannot_have_before_any_work(name, monkeypatch):
    model, inputs = model_of("qwen2_5_vl"), ZOO["qwen2_5_vl"].prompt((1,))
    monkeypatch.setattr(model.model.visual, "forward", None)
    with pytest.raises(
        foveate.MissingSignal, match=f"{type(NEW[name]).__name__} needs states before the projector"
    ):
        foveate.prune(model, inputs, replace(NEW[name], space="patches"), keep=4)
    if name != "tome":
        with pytest.raises(foveate.MissingSignal, match="has no CLS token"):
            foveate.prune(model, inputs, replace(NEW[name], attention="cls"), keep=4)
    monkeypatch.setattr("foveate.families.FAMILIES", {"llava": FAMILIES["llava"]})
    with pytest.raises(foveate.MissingSignal, match="this family does not say which layer"):
        foveate.prune(model, inputs, NEW[name], keep=4, family="generic")


@EACH
@pytest.mark.parametrize("animal", ["llava_next_video", "qwen2_5_vl_video"])
@torch.no_grad()
def test_frames_are_merged_by_themselves(animal, name):
    model, inputs = model_of(animal), ZOO[animal].prompt((1,))
    frames = len(foveate.prune(model, inputs, NEW[name], keep=0.5).grids[0])
    pruned = foveate.prune(model, inputs, NEW[name], keep=2 * frames, per_frame=True)
    tokens = encoded_prompt(model, inputs, pruned.report.method.needs, family_of(animal)).images[0]
    parts = [pruned.report.method.merge(frame, 2) for frame in tokens.frames()]
    ours = pruned["mm_encoder_outputs"]["video"].pooler_output[0]
    assert frames > 1
    assert sorted(ours[:, 0].tolist()) == pytest.approx(sorted(torch.cat(parts)[:, 0].tolist()), abs=1e-5)
    whole = pruned.report.method.merge(tokens, len(ours))
    same = sorted(ours[:, 0].tolist()) == pytest.approx(sorted(whole[:, 0].tolist()), abs=1e-3)
    assert not same or name == "tome"  # whose pairs may be the same either way


def test_one_preparation_serves_them_beside_methods_that_keep(tiny):
    inputs = tiny_prompt((1, 2))
    methods = [*NEW.values(), foveate.RRQR()]
    prepared = prepare(tiny, inputs, methods)
    for method in methods:
        ours, alone = prepared.keep(method, 9), foveate.prune(tiny, inputs, method, keep=9)
        assert [kept.tolist() for kept in ours.kept] == [kept.tolist() for kept in alone.kept]
        with torch.no_grad():
            assert torch.allclose(tiny(**ours).logits, tiny(**alone).logits, atol=1e-5)


def test_they_are_of_one_kind():
    assert all(isinstance(method, Mixing) for method in NEW.values())
    assert not foveate.AveragePool().unprojected
