"""What counts as the question, and as its nouns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate import question as module
from foveate.question import nouns_of, question_at, question_of

VICUNA = "A chat between a curious human and an artificial intelligence assistant. "
PROMPTS = {
    "llava": "USER: <image>\nWhat is it? ASSISTANT:",
    "llava with system prompt": VICUNA + "USER: <image>\nWhat is it? ASSISTANT:",
    "llava, second turn": "USER: <image>\nIs it red? ASSISTANT: Yes.</s>USER: What is it? ASSISTANT:",
    "chatml": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image>What is it?"
    "<|im_end|>\n<|im_start|>assistant\n",
    "llama 3": "<|start_header_id|>user<|end_header_id|>\n\n<image>What is it?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST]<image>\nWhat is it?[/INST]",
    "gemma": "<bos><start_of_turn>user\n<image>What is it?<end_of_turn>\n<start_of_turn>model\n",
    "idefics": "<s>User:<image>What is it?<end_of_utterance>\nAssistant:",
    "no template": "<image> What is it?",
    "llama 2 with system prompt": "<s>[INST] <<SYS>>\nYou see dogs.\n<</SYS>>\n\n<image>\nWhat is it? [/INST]",
    "vicuna 1.0": "###Human: <image>\nWhat is it?###Assistant:",
    "chatml without line break": "<|im_start|>user<image>What is it?<|im_end|><|im_start|>assistant",
}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
def test_template_text_never_counts(prompt):
    assert question_of(prompt, ["<image>", "<s>", "</s>", "<bos>"]) == "What is it?"


@pytest.mark.parametrize(
    "question",
    [
        "What does the sign 'User: admin' say?",
        "What is written after Assistant: in the chat?",
        "Is it user error?",
    ],
)
def test_role_names_in_a_question_are_kept(question):
    assert question_of(f"USER: <image>\n{question} ASSISTANT:", ["<image>"]) == question


@pytest.mark.parametrize("prompt", ["USER: <image>\n ASSISTANT:", "<image>", "", "USER: ASSISTANT:"])
def test_no_question_is_empty(prompt):
    assert question_of(prompt, ["<image>"]) == ""


def words(question):
    nouns = nouns_of(question)
    return [question[slice(*span)] for span in nouns.spans], nouns.tagger


def test_nouns_by_a_tagger():
    found, tagger = words("What letter is on the small red circle left of the star?")
    assert found == ["letter", "circle", "star"]
    assert tagger in ("spacy", "hanta")


def test_without_a_noun_all_content_words():
    assert words("Is it red?") == (["red"], "content words")


@pytest.mark.parametrize("question", ["", "?", "What is it?", "…", "   "])
def test_without_content_words_nothing(question):
    assert words(question)[0] == []


def test_without_a_tagger_content_words(monkeypatch):
    monkeypatch.setattr(module, "_tagger", lambda: ("content words", module._content_words))
    assert words("How many dogs are on the sofa?") == (["dogs", "sofa"], "content words")


@pytest.mark.parametrize("missing", [("spacy",), ("spacy", "hanta")])
def test_taggers_fall_back_in_order(monkeypatch, missing):
    def absent():
        raise ImportError

    taggers = {name: absent if name in missing else load for name, load in module.TAGGERS.items()}
    monkeypatch.setattr(module, "TAGGERS", taggers)
    assert module._tagger.__wrapped__()[0] == ("hanta" if missing == ("spacy",) else "content words")


@given(st.text(max_size=80))
def test_any_text_gives_spans_of_words(text):
    for start, end in nouns_of(text).spans:
        assert 0 <= start < end <= len(text)


def test_the_question_of_an_image_is_its_own_turns_and_stays_so():
    special = ["<image>", "</s>"]
    first = "USER: <image>\nWhat is it? ASSISTANT:"
    longer = f"{first} A dog.</s>USER: Where? ASSISTANT: There.</s>USER: <image> And this? ASSISTANT:"
    assert question_at(first, first.index("<image>"), special) == "What is it?"
    assert question_at(longer, longer.index("<image>"), special) == "What is it?"
    assert question_at(longer, longer.rindex("<image>"), special) == "And this?"
    silent = "USER: <image> ASSISTANT: Yes?</s>USER: What is it? ASSISTANT:"
    assert question_at(silent, silent.index("<image>"), special) == "What is it?"
    system = "<|im_start|>system\nOur brand: <image>.<|im_end|>\n<|im_start|>user\nWhere is it?<|im_end|>\n"
    assert question_at(system, system.index("<image>"), special) == question_of(system, special) == "Where is it?"
    assert question_at("<image>", 0, special) == ""
