"""What counts as the question, and as its nouns."""

from functools import cache

import hypothesis
import pytest
from hypothesis import strategies as st

from foveate.errors import InvalidInputs
from foveate.text import nouns as module
from foveate.text.nouns import nouns_of
from foveate.text.question import given, question_at, questions
from templates import Chat

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


@cache
def plain_tokenizer(*special):
    """Without a chat template: turns are told by known marks in the text."""
    return Chat(template=None, special=special).tokenizer()


def asked(prompt, *special):
    tokenizer = plain_tokenizer(*special)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return questions(tokenizer, [ids], {tokenizer.convert_tokens_to_ids("<image>")})[0]


def asked_at(prompt, images):
    tokenizer = plain_tokenizer()
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return question_at(tokenizer, ids, {tokenizer.convert_tokens_to_ids("<image>")}, images)


MARKS = ("<bos>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<end_of_utterance>", "[INST]")


@pytest.mark.parametrize("special", [(), MARKS], ids=["marks in letters", "marks as special tokens"])
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
def test_template_text_never_counts(prompt, special):
    assert asked(prompt, *(special or ("<bos>",))) == "What is it?"


@pytest.mark.parametrize(
    "question",
    [
        "What does the sign 'User: admin' say?",
        "What is written after Assistant: in the chat?",
        "Is it user error?",
    ],
)
def test_role_names_in_a_question_are_kept(question):
    assert asked(f"USER: <image>\n{question} ASSISTANT:") == question
    marked = f"<|im_start|>user\n{question} USER: x ASSISTANT:<|im_end|>\n<|im_start|>assistant\n"
    assert asked(marked) == f"{question} USER: x ASSISTANT:"


@pytest.mark.parametrize("prompt", ["USER: <image>\n ASSISTANT:", "<image>", "", "USER: ASSISTANT:"])
def test_no_question_is_empty(prompt):
    assert asked(prompt) == ""


@pytest.mark.parametrize("asked_for", [3, ["a"], ["a", 3], ("a", "b", "c")])
def test_questions_given_by_the_caller_are_one_text_or_one_per_row(asked_for):
    with pytest.raises(InvalidInputs, match="allowed is a text, or one per row"):
        given(asked_for, 2)


@pytest.mark.parametrize("question", ["a \ud800", ["fine", "\udfff"]])
def test_half_a_character_is_refused(question):
    with pytest.raises(InvalidInputs, match="lone surrogates"):
        given(question, 2)


def test_questions_given_by_the_caller_rule():
    assert given(None, 2) is None
    assert given("a", 2) == ["a", "a"]
    assert given(("a", ""), 2) == ["a", ""]


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


@hypothesis.given(st.text(max_size=80))
def test_any_text_gives_spans_of_words(text):
    for start, end in nouns_of(text).spans:
        assert 0 <= start < end <= len(text)


def test_the_question_of_an_image_is_its_own_turns_and_stays_so():
    first = "USER: <image>\nWhat is it? ASSISTANT:"
    longer = f"{first} A dog.</s>USER: Where? ASSISTANT: There.</s>USER: <image> And this? ASSISTANT:"
    assert asked_at(first, 1) == ["What is it?"]
    assert asked_at(longer, 2) == ["What is it?", "And this?"]
    silent = "USER: <image> ASSISTANT: Yes?</s>USER: What is it? ASSISTANT:"
    assert asked_at(silent, 1) == ["What is it?"]
    system = "<|im_start|>system\nOur brand: <image>.<|im_end|>\n<|im_start|>user\nWhere is it?<|im_end|>\n"
    assert asked_at(system, 1) == [asked(system)] == ["Where is it?"]
    assert asked_at("<image>", 1) == [""]
