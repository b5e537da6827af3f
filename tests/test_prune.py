"""prune(): signals, report, and every bad input it must refuse."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from transformers import AutoTokenizer, CLIPModel, DynamicCache, LlamaConfig, LlamaForCausalLM

import foveate
from conftest import CACHE, IMAGE_TOKEN, noise, tiny_llava, tiny_prompt
from foveate import mini
from foveate.encode import encode
from foveate.families import family_of
from foveate.relevance import clip_relevance, noun_embeddings
from foveate.signals import Source
from foveate.tokens import Signal
from zoo import ZOO

RRQR = foveate.RRQR()


def chat(processor, *rows):
    """Processor inputs for rows of (number of images, question)."""
    images = [noise(seed) for seed in range(sum(n for n, _ in rows))]
    texts = [f"USER: {'<image>' * n}\n{question} ASSISTANT:" for n, question in rows]
    return processor(images=images or None, text=texts, padding=True, return_tensors="pt")


# Signals.


@pytest.mark.parametrize("layer", [-2, -1, 1, 2])
def test_cls_attention_equals_eager_attention_under_sdpa(layer):
    model = tiny_llava(vision_feature_layer=layer)
    inputs = tiny_prompt((2, 1))
    assert model.config._attn_implementation == "sdpa"
    encoded = encode(model, family_of(model), inputs, frozenset({Signal.CLS_ATTENTION}))
    model.set_attn_implementation("eager")
    attentions = model.model.vision_tower(inputs["pixel_values"], output_attentions=True).attentions
    expected = attentions[layer - 1 if layer > 0 else layer].mean(dim=1)[:, 0, 1:]
    ours = torch.stack([tokens.cls_attention for tokens in encoded.images])
    assert torch.allclose(ours, expected, atol=1e-6)


def test_encoding_leaves_no_hook_behind(tiny):
    everything = frozenset(Signal)
    encode(tiny, family_of(tiny), tiny_prompt(), frozenset())  # transformers hooks its own recorders in, once
    before = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in tiny.modules()]
    encode(tiny, family_of(tiny), tiny_prompt(), everything)
    with pytest.raises(foveate.InvalidInputs):
        encode(tiny, family_of(tiny), {**tiny_prompt((2,)), "pixel_values": torch.zeros(1, 3, 24, 24)}, everything)
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in tiny.modules()] == before


def test_clip_relevance_is_the_clip_models_own_cosine(bundled):
    model, processor = bundled
    clip = CLIPModel.from_pretrained(mini.PATH / "clip", dtype=torch.float32).eval()
    inputs = chat(processor, (1, "Is there a red circle?"))
    encoded = encode(model, family_of(model), dict(inputs), frozenset({Signal.CLIP_RELEVANCE}))
    states = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True)
    patches = states.hidden_states[model.config.vision_feature_layer][0, 1:]
    tokenizer = AutoTokenizer.from_pretrained(mini.PATH / "clip")
    text = clip.text_model(**tokenizer("Is there a red circle?", return_tensors="pt")).pooler_output
    a = clip.visual_projection(clip.vision_model.post_layernorm(patches))
    expected = torch.cosine_similarity(a, clip.text_projection(text), dim=-1)
    ours = clip_relevance(clip, encoded.patches[0], "Is there a red circle?")
    assert torch.allclose(ours, expected, atol=1e-5)
    loaded = Source.find(model, family_of(model), foveate.SPARE(relevance="clip"), None, None).clip
    assert torch.allclose(
        clip_relevance(loaded, encoded.patches[0], "Is there a red circle?"), expected, atol=1e-5
    )


def test_a_long_question_is_cut_into_windows(bundled):
    model, processor = bundled
    inputs = chat(processor, (1, "Is there a red circle? " * 40))
    encoded = encode(model, family_of(model), dict(inputs), frozenset({Signal.CLIP_RELEVANCE}))
    clip = Source.find(model, family_of(model), foveate.SPARE(relevance="clip"), None, None).clip
    short, long = "Is there a red circle? ", "How many stars? " * 40
    ours = clip_relevance(clip, encoded.patches[0], short * 40)
    first, other = (clip_relevance(clip, encoded.patches[0], short * 40 + end) for end in ("", long))
    assert torch.equal(ours, first)
    assert not torch.allclose(first, other, atol=1e-3)  # what comes after the first window counts


def test_noun_embeddings_are_those_of_the_nouns_in_place(bundled):
    model, processor = bundled
    rows, tagger = noun_embeddings(model, processor.tokenizer, "Is there a red circle?")
    ids = processor.tokenizer(" circle", add_special_tokens=False)["input_ids"]
    expected = model.get_input_embeddings()(torch.tensor(ids))
    assert torch.equal(rows, expected)
    assert tagger in ("spacy", "hanta")


def test_the_question_may_be_given_and_then_rules(bundled):
    model, processor = bundled
    inputs = chat(processor, (1, "Is there a red circle?"), (1, "Is there a blue star?"))
    method = foveate.ResPrune(alpha=3.0)
    own = foveate.prune(model, inputs, method, keep=30)
    same = foveate.prune(
        model, inputs, method, keep=30, question=["Is there a red circle?", "Is there a blue star?"]
    )
    other = foveate.prune(model, inputs, method, keep=30, question="How many letters are there?")
    assert [k.tolist() for k in own.kept] == [k.tolist() for k in same.kept]
    assert [k.tolist() for k in own.kept] != [k.tolist() for k in other.kept]
    with pytest.raises(foveate.InvalidInputs, match="one per row"):
        foveate.prune(model, inputs, method, keep=30, question=["one"] * 3)


@pytest.mark.parametrize("name", foveate.METHODS)
@pytest.mark.parametrize("question", ["", "?", "What is it?", "Is it red?", "How many red circles?"])
def test_every_method_copes_with_every_question(bundled, name, question):
    model, processor = bundled
    inputs = chat(processor, (1, question), (2, question), (0, "Hello there"))
    pruned = foveate.prune(model, inputs, foveate.METHODS[name](), keep=32)
    assert [len(set(k.tolist())) for k in pruned.kept] == [32, 32, 32]
    assert model.generate(**pruned, max_new_tokens=2).shape[0] == 3


@pytest.mark.parametrize("name", foveate.METHODS)
def test_a_row_does_not_depend_on_its_batch_mates(bundled, name):
    model, processor = bundled
    rows = [(1, "Is there a red circle?"), (1, "How many small blue stars are in the whole image?")]
    method = foveate.METHODS[name]()
    batch = foveate.prune(model, chat(processor, *rows), method, keep=40)
    alone = foveate.prune(model, chat(processor, rows[0]), method, keep=40)
    assert batch.kept[0].tolist() == alone.kept[0].tolist()


# What comes back.


def test_the_report_counts_and_times(bundled):
    model, processor = bundled
    inputs = chat(processor, (1, "Is there a red circle?"), (2, "How many stars?"))
    pruned = foveate.prune(model, inputs, foveate.SPARE(), keep=0.25)
    report = pruned.report
    assert report.tokens_before == [576] * 3
    assert report.tokens_after == [144] * 3
    dropped = [before - after for before, after in zip(report.prompt_before, report.prompt_after, strict=True)]
    assert dropped == [432, 864]
    assert list(report.seconds) == ["encode", "relevance", "select", "shrink"]
    assert all(second >= 0 for second in report.seconds.values())
    assert report.method == foveate.SPARE(relevance="clip")
    assert report.tagger is None
    assert all(0 <= energy < 1 for energy in report.residual_energy)
    assert pruned.grids == [((24, 24),)] * 3
    assert pruned.rows == [0, 1, 1]
    assert pruned["input_ids"].shape == pruned["attention_mask"].shape == pruned["position_ids"].shape
    assert "pixel_values" not in pruned
    for kept, order in zip(pruned.kept, pruned.orders, strict=True):
        assert kept.tolist() == sorted(order.tolist())


def test_inputs_are_not_changed(tiny):
    inputs = tiny_prompt((1, 2))
    before = {name: value.clone() for name, value in inputs.items()}
    tiny.generate(**foveate.prune(tiny, inputs, RRQR, keep=5), max_new_tokens=2, num_beams=2)
    assert all(torch.equal(before[name], inputs[name]) for name in before)
    assert list(before) == list(inputs)


def test_the_kept_share_of_energy_is_the_engines(tiny):
    pruned = foveate.prune(tiny, tiny_prompt(), RRQR, keep=9)
    features = tiny.model.get_image_features(tiny_prompt()["pixel_values"], return_dict=True).pooler_output[0]
    expected = foveate.select.residual_energy(features, pruned.orders[0])[-1]
    assert pruned.report.residual_energy == pytest.approx([float(expected)])


def test_no_gradients_flow(tiny):
    pruned = foveate.prune(tiny, tiny_prompt(), RRQR, keep=5)
    assert not pruned["mm_encoder_outputs"]["image"].pooler_output[0].requires_grad


# Bad input: one line, a named error, nothing silently kept unpruned.


@pytest.mark.parametrize("keep", [0, -1, 1.5, "abc", None])
def test_bad_keep(tiny, keep):
    with pytest.raises(foveate.InvalidBudget):
        foveate.prune(tiny, tiny_prompt(), RRQR, keep=keep)


def test_keep_over_the_tokens_keeps_all(tiny):
    inputs = tiny_prompt()
    pruned = foveate.prune(tiny, inputs, RRQR, keep=10_000)
    assert pruned.report.tokens_after == [36]
    assert torch.allclose(tiny(**pruned).logits[:, 1:], tiny(**inputs).logits, atol=1e-4)


@pytest.mark.parametrize(("rows", "pixels"), [((2,), 1), ((1,), 2), ((1, 0), 2), ((0, 1), 2)])
def test_marks_and_images_must_match(tiny, rows, pixels):
    inputs = {**tiny_prompt(rows), "pixel_values": torch.randn(pixels, 3, 24, 24)}
    with pytest.raises(foveate.InvalidInputs, match="one image"):
        foveate.prune(tiny, inputs, RRQR, keep=5)


def test_marks_that_split_an_image_between_rows_are_refused(tiny):
    inputs = tiny_prompt((1, 1))
    inputs["input_ids"][0, (inputs["input_ids"][0] == IMAGE_TOKEN).nonzero()[0]] = 5
    inputs["input_ids"][1, 0] = IMAGE_TOKEN
    inputs["attention_mask"][:] = 1
    with pytest.raises(foveate.InvalidInputs, match="one image"):
        foveate.prune(tiny, inputs, RRQR, keep=5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", foveate.METHODS)
def test_non_finite_pixels(bundled, name, value):
    model, processor = bundled
    inputs = chat(processor, (1, "Is there a red circle?"))
    inputs["pixel_values"][0, 0, 5, 5] = value
    with pytest.raises(foveate.InvalidFeatures, match="finite"):
        foveate.prune(model, inputs, foveate.METHODS[name](), keep=5)


def test_pixels_with_a_filled_cache(tiny):
    inputs = tiny_prompt()
    cache = tiny(**inputs, use_cache=True)[CACHE]
    with pytest.raises(foveate.InvalidInputs, match="KV cache"):
        foveate.prune(tiny, {**inputs, CACHE: cache}, RRQR, keep=5)
    empty = DynamicCache(config=tiny.config.get_text_config())
    assert foveate.prune(tiny, {**inputs, CACHE: empty}, RRQR, keep=5).report.tokens_after == [5]


@pytest.mark.parametrize("name", ["position_ids", "inputs_embeds", "mm_encoder_outputs"])
def test_inputs_that_prune_sets_itself(tiny, name):
    with pytest.raises(foveate.InvalidInputs, match=name):
        foveate.prune(tiny, {**tiny_prompt(), name: torch.zeros(1)}, RRQR, keep=5)


def test_a_mask_that_hides_image_tokens(tiny):
    inputs = tiny_prompt()
    inputs["attention_mask"][0, 8:11] = 0
    with pytest.raises(foveate.InvalidInputs, match="hides 3 image placeholders"):
        foveate.prune(tiny, inputs, RRQR, keep=5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vision_feature_select_strategy", "full"),
        ("vision_feature_layer", -1),
        ("logits_to_keep", torch.tensor([3])),
        ("input_ids", [[1, 2]]),
        ("pixel_values", [[0.0]]),
    ],
)
def test_options_that_would_split_the_two_paths(tiny, name, value):
    with pytest.raises(foveate.InvalidInputs, match=f"{name}.*allowed"):
        foveate.prune(tiny, {**tiny_prompt(), name: value}, RRQR, keep=5)


def test_inputs_that_are_no_mapping(tiny):
    with pytest.raises(foveate.InvalidInputs, match="NoneType"):
        foveate.prune(tiny, None, RRQR, keep=5)


def test_a_processor_that_is_none(tiny):
    with pytest.raises(foveate.InvalidOption, match="processor of type int"):
        foveate.prune(tiny, tiny_prompt(), foveate.ResPrune(), keep=5, processor=5)


@pytest.mark.parametrize("question", [3, ["one"], b"what?", [1, 2]])
def test_a_question_that_is_none(tiny, bundled, question):
    options = {"keep": 5, "processor": bundled[1], "question": question}
    with pytest.raises(foveate.InvalidInputs, match=r"question=.*one per row \(2\)"):
        foveate.prune(tiny, tiny_prompt((1, 1)), foveate.ResPrune(), **options)


def test_a_clip_of_another_width(tiny, bundled):
    _, processor = bundled
    with pytest.raises(foveate.MissingSignal, match="width"):
        foveate.prune(tiny, tiny_prompt(), foveate.SPARE(), keep=5, processor=processor, clip=mini.PATH / "clip")
    with pytest.raises(foveate.InvalidOption, match="clip=3: allowed are a CLIPModel, a path or an id"):
        foveate.prune(tiny, tiny_prompt(), foveate.SPARE(), keep=5, processor=processor, clip=3)


def test_clip_where_it_cannot_be_used(bundled):
    model, inputs = ZOO["llava_next"].build(), ZOO["llava_next"].prompt()
    with pytest.raises(foveate.UnsupportedModel, match="LLaVA-NeXT: supported is llava with a CLIP tower"):
        foveate.prune(model, inputs, foveate.SPARE(), keep=0.5, processor=bundled[1], clip=mini.PATH / "clip")
    assert foveate.prune(model, inputs, RRQR, keep=0.5, clip=mini.PATH / "clip").kept  # it does not ask for it


@pytest.mark.parametrize(
    ("name", "error"), [("input_ids", "input_ids is"), ("pixel_values", "no image in the inputs")]
)
def test_inputs_that_are_needed(tiny, name, error):
    inputs = tiny_prompt()
    del inputs[name]
    with pytest.raises(foveate.InvalidInputs, match=error):
        foveate.prune(tiny, inputs, RRQR, keep=5)


@pytest.mark.parametrize(
    "pixels", [torch.zeros(0, 3, 24, 24), torch.zeros(3, 24), torch.zeros(2, 5, 24, 24)], ids=str
)
def test_pixels_that_the_tower_cannot_take(tiny, pixels):
    with pytest.raises(foveate.InvalidInputs):
        foveate.prune(tiny, {**tiny_prompt(), "pixel_values": pixels}, RRQR, keep=5)


def test_grids_that_do_not_fit_the_pixels():
    model, inputs = ZOO["qwen2_5_vl"].build(), ZOO["qwen2_5_vl"].prompt((2,))
    with pytest.raises(foveate.InvalidInputs):
        foveate.prune(model, {**inputs, "image_grid_thw": inputs["image_grid_thw"][:1]}, RRQR, keep=5)


def test_masked_columns_of_rows_without_padding_are_no_padding(tiny):
    """Its id is often that of the end, which penalties on repeated tokens would then rule out."""
    for rows in ((1,), (1, 1), (2, 1)):
        inputs = tiny_prompt(rows)
        pruned = foveate.prune(tiny, inputs, RRQR, keep=5)
        masked = pruned["attention_mask"] == 0
        assert masked.any()
        for row, padded in enumerate((inputs["attention_mask"] == 0).any(dim=1)):
            found = pruned["input_ids"][row][masked[row]]
            expected = tiny.generation_config.pad_token_id if padded else inputs["input_ids"][row, 0]
            assert (found == expected).all()


def test_padding_is_told_by_its_id_as_generate_does(tiny):
    inputs = tiny_prompt((1, 2))
    assert not inputs["attention_mask"].all()
    pruned = foveate.prune(tiny, inputs, RRQR, keep=5)
    bare = {name: value for name, value in inputs.items() if name != "attention_mask"}
    padding = bare["input_ids"] == tiny.generation_config.pad_token_id
    assert torch.equal(padding, inputs["attention_mask"] == 0)
    for name in ("input_ids", "attention_mask", "position_ids"):
        assert torch.equal(foveate.prune(tiny, bare, RRQR, keep=5)[name], pruned[name])
    stock = tiny.generate(**bare, max_new_tokens=6)
    with foveate.attach(tiny, RRQR, keep=1.0):
        assert torch.equal(tiny.generate(**bare, max_new_tokens=6), stock)


def test_a_mask_of_another_shape(tiny):
    inputs = tiny_prompt()
    with pytest.raises(foveate.InvalidInputs, match="shapes"):
        foveate.prune(tiny, {**inputs, "attention_mask": inputs["attention_mask"][:, 1:]}, RRQR, keep=5)


def test_an_unsupported_model_lists_the_supported_ones():
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    with pytest.raises(
        foveate.UnsupportedModel,
        match=r"'llama'.*supported are llava \(clip_vision_model or pixtral\), llava_next",
    ):
        foveate.prune(LlamaForCausalLM(config), tiny_prompt(), RRQR, keep=5)
    with pytest.raises(foveate.UnsupportedModel, match="Linear cannot generate"):
        foveate.prune(torch.nn.Linear(1, 1), tiny_prompt(), RRQR, keep=5)


@pytest.mark.parametrize(
    "method",
    [foveate.SPARE(), foveate.SPARE(relevance="clip"), foveate.ResPrune(), foveate.RelevanceTopK()],
    ids=repr,
)
def test_a_missing_signal_raises_before_any_work(tiny, method, monkeypatch):
    monkeypatch.setattr(tiny.model.vision_tower, "forward", None)  # any work would fail
    with pytest.raises(foveate.MissingSignal, match=r"pass (processor|clip)="):
        foveate.prune(tiny, tiny_prompt(), method, keep=5)


def test_clip_that_is_none(bundled, tmp_path):
    model, processor = bundled
    inputs = chat(processor, (1, "Is there a red circle?"))
    with pytest.raises(foveate.MissingSignal, match="no CLIP model"):
        foveate.prune(model, inputs, foveate.SPARE(), keep=5, clip=tmp_path)


@pytest.mark.parametrize("options", [{"positions": "random"}, {"positions": None}])
def test_bad_options(tiny, options):
    with pytest.raises(foveate.InvalidOption, match="allowed"):
        foveate.prune(tiny, tiny_prompt(), RRQR, keep=5, **options)


def test_a_method_class_is_no_method(tiny):
    with pytest.raises(foveate.InvalidOption, match="SPARE"):
        foveate.prune(tiny, tiny_prompt(), foveate.RRQR, keep=5)


@dataclass(frozen=True)
class Mistaken(foveate.Method):
    """A method of one's own that gives what it should not."""

    source: ClassVar[str] = "none"
    complexity: ClassVar[str] = "none"
    gives: str = "too few"

    def rank(self, tokens, k):
        found = torch.arange(k)
        return {
            "too few": found[1:],
            "twice": torch.zeros(k, dtype=torch.long),
            "beyond": found + len(tokens.features),
            "negative": found - 1,
            "floats": found.float(),
            "a list": list(range(k)),
            "a matrix": found[None],
        }[self.gives]


@pytest.mark.parametrize("gives", ["too few", "twice", "beyond", "negative", "floats", "a list", "a matrix"])
def test_a_method_of_ones_own_that_is_mistaken(tiny, gives):
    with pytest.raises(
        foveate.InvalidOption, match=r"Mistaken.rank gave .* for k=5 of 36 tokens: allowed are 5 dist"
    ):
        foveate.prune(tiny, tiny_prompt(), Mistaken(gives), keep=5)
