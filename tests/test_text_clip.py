"""The question's likeness to patches: many images at once, the text tower once per question."""

import gc
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPConfig, CLIPModel

from foveate import mini
from foveate.text import tokenizer as module
from foveate.text.clip import clip_for, clip_relevance, text_embedding
from foveate.text.tokenizer import template_of, tokenizer_at, tokenizer_for
from test_text_nouns import state

QUESTIONS = ("Is there a red circle?", "How many stars? " * 40, "Where?")


@pytest.fixture(scope="module")
def clip():
    return CLIPModel.from_pretrained(mini.PATH / "clip", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def patches(clip):
    width = clip.config.vision_config.hidden_size
    return torch.randn(3, 20, width, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def by_windows(clip, patches, question):
    """The mean cosine over the question's windows, image by image."""
    tokenizer = tokenizer_at(clip.name_or_path)
    size = clip.config.text_config.max_position_embeddings
    windows = tokenizer(
        question,
        truncation=True,
        max_length=size,
        return_overflowing_tokens=True,
        padding=True,
        return_tensors="pt",
    )
    text = clip.text_model(windows["input_ids"], attention_mask=windows["attention_mask"]).pooler_output
    text = clip.text_projection(text)[None]
    image = clip.visual_projection(clip.vision_model.post_layernorm(patches))[:, None]
    return torch.cosine_similarity(image, text, dim=-1).mean(dim=1)


def test_a_group_of_images_is_each_image_with_its_question(clip, patches):
    together = clip_relevance(clip, patches, torch.stack([text_embedding(clip, text) for text in QUESTIONS]))
    assert together.shape == (3, 20)
    assert together.dtype == torch.float32
    for image, question, found in zip(patches, QUESTIONS, together, strict=True):
        assert torch.allclose(found, by_windows(clip, image, question), atol=1e-6)
        assert torch.allclose(found, clip_relevance(clip, image, text_embedding(clip, question)), atol=1e-6)
    assert not torch.allclose(together[0], by_windows(clip, patches[0], QUESTIONS[1]), atol=1e-3)
    shared = clip_relevance(clip, patches, text_embedding(clip, QUESTIONS[0]))
    assert torch.allclose(shared[0], together[0], atol=1e-6)


def test_the_text_tower_runs_once_per_question(clip, patches, monkeypatch):
    ran = []
    stock = clip.get_text_features
    monkeypatch.setattr(clip, "get_text_features", lambda *given, **named: ran.append(1) or stock(*given, **named))
    for text in ("one", "two", "one", "two", "one"):
        text_embedding(clip, text)
    assert len(ran) == 2
    for index in range(40):
        text_embedding(clip, f"question {index}")
    text_embedding(clip, "question 39")
    assert len(ran) == 42
    text_embedding(clip, "one")  # forgotten, since only the last few are kept
    assert len(ran) == 43


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype, clip, patches):
    text = f"Is there a star? {dtype}"
    with torch.autocast("cpu", dtype=dtype):
        inside = clip_relevance(clip, patches, text_embedding(clip, text))
    assert inside.dtype == torch.float32
    assert torch.allclose(inside[0], by_windows(clip, patches[0], text), atol=1e-6)


def test_what_was_remembered_in_inference_mode_serves_outside(clip, patches):
    with torch.inference_mode():
        text_embedding(clip, "inference")
    assert clip_relevance(clip, patches, text_embedding(clip, "inference")).shape == (3, 20)


class Reads(TorchDispatchMode):
    """Counts what would wait for a device: values read by the host."""

    count = 0

    def __torch_dispatch__(self, function, types, given=(), named=None):
        Reads.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*given, **named or {})


def test_nothing_is_read_back(clip, patches):
    embeddings = torch.stack([text_embedding(clip, text) for text in QUESTIONS])
    Reads.count = 0
    with Reads():
        clip_relevance(clip, patches, embeddings)
        assert Reads.count == 0
        embeddings[0, 0].item()  # the control
    assert Reads.count == 1


def test_a_model_that_is_gone_is_forgotten(clip):
    other = CLIPModel(CLIPConfig.from_pretrained(mini.PATH / "clip")).eval()
    other.name_or_path = clip.name_or_path
    assert not torch.allclose(text_embedding(other, "Where?"), text_embedding(clip, "Where?"), atol=1e-3)
    tie = weakref.ref(other)
    del other
    gc.collect()
    assert tie() is None


def test_the_text_tower_leaves_no_trace(bundled, patches):
    model, _ = bundled
    before = state()
    pair = clip_for(model, None)
    clip_relevance(pair, patches, text_embedding(pair, "trace"))
    assert state() == before


def test_what_depends_on_the_model_alone_is_looked_for_once(bundled, monkeypatch):
    model, processor = bundled
    assert clip_for(model, None) is clip_for(model, None)
    assert tokenizer_for(model, None) is tokenizer_for(model, None)
    assert tokenizer_for(model, processor) is processor.tokenizer
    assert "USER: " in template_of(processor) == template_of(tokenizer_for(model, None))
    monkeypatch.setattr(module, "tokenizer_at", lambda path: pytest.fail("looked for again"))
    assert tokenizer_for(model, None) is not None
