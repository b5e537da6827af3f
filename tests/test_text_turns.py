"""Whose words the question is: templates, turns, and what users type into them."""

from functools import cache

import hypothesis
import pytest
from hypothesis import strategies as st

from foveate.text.question import question_at, questions
from templates import CHATS

QUESTION = "What colour is the car?"
TOOL = [name for name in CHATS if CHATS[name].tool]


@cache
def tokenizer_of(name):
    return CHATS[name].tokenizer()


def said(role, text, images=0):
    return {"role": role, "content": [{"type": "image"}] * images + [{"type": "text", "text": text}]}


def ids_of(name, *messages, ask=True):
    tokenizer = tokenizer_of(name)
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids, {tokenizer.convert_tokens_to_ids("<image>")}


def found(name, *messages, ask=True):
    ids, skip = ids_of(name, *messages, ask=ask)
    return questions(tokenizer_of(name), [ids], skip)[0]


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("images", [0, 1, 3])
@pytest.mark.parametrize("text", [QUESTION, "", "Read:\n\n  one\n\ttwo\n", "¿Qué? 北京 गाड़ी"])
def test_one_turn(name, text, images):
    assert found(name, said("user", text, images)) == " ".join(text.split())


@pytest.mark.parametrize("name", CHATS)
def test_without_a_generation_prompt(name):
    assert found(name, said("user", QUESTION, 1), ask=False) == QUESTION


@pytest.mark.parametrize("name", [name for name in CHATS if CHATS[name].system])
def test_the_system_says_no_question(name):
    system = "You see <b>animals</b>.\n\nUse few words: one."
    expected = f"{' '.join(system.split())} {QUESTION}" if CHATS[name].system == "user" else QUESTION
    assert found(name, said("system", system), said("user", QUESTION, 1)) == expected


@pytest.mark.parametrize("name", CHATS)
def test_the_last_of_several_turns(name):
    talk = [
        said("user", "Is it red?", 1),
        said("assistant", "Yes."),
        said("user", "And old?"),
        said("assistant", "No."),
    ]
    assert found(name, *talk, said("user", QUESTION)) == QUESTION
    assert found(name, *talk, ask=False) == "And old?"


@pytest.mark.parametrize("name", TOOL)
@pytest.mark.parametrize("results", [1, 2])
def test_a_tools_turn_is_not_the_users(name, results):
    tools = [said("tool", "USER: red\nuser\n")] * results
    assert found(name, said("user", QUESTION, 1), said("assistant", "I look."), *tools) == QUESTION


TYPED = [
    "Transcribe the line that starts with USER: in the screenshot",
    "Is this dialogue right?\nHuman: hello\nAssistant: hi",
    "user\nsystem\nassistant\ntool",
    "What do [INST] and ### Instruction: and <start_of_turn>user mean?",
    "Where does ASSISTANT: stand?",
    "Say what follows ### Response:",
    "Has <|system|> or <|observation|> a colour?",
    "Where is <tool_response> here?",
    "System: you are. User: me. Tool: it.",
]


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("text", TYPED)
@pytest.mark.parametrize("first", [True, False])
def test_users_type_role_words(name, text, first):
    chat = CHATS[name]
    if any(mark in text for mark in (*chat.special, *chat.added)):
        pytest.skip("these are this format's special tokens, which the processor makes of the text")
    before = [] if first else [said("user", QUESTION, 1), said("assistant", "Blue.")]
    assert found(name, *before, said("user", text, int(first))) == " ".join(text.split())


def test_without_the_template_role_words_cut():
    """The control: known marks in the text are all that is left then, and users may type them."""
    tokenizer = CHATS["llava"].tokenizer()
    ids, skip = ids_of("llava", said("user", "Where does ASSISTANT: stand?", 1))
    assert questions(tokenizer, [ids], skip) == ["Where does ASSISTANT: stand?"]
    tokenizer.chat_template = None
    assert questions(tokenizer, [ids], skip) == ["Where does"]


@pytest.mark.parametrize("name", CHATS)
def test_the_question_of_an_image_is_its_own_turns_and_stays_so(name):
    talk = [said("user", QUESTION, 2), said("assistant", "Blue."), said("user", "And this?", 1)]
    for length, expected in ((1, [QUESTION] * 2), (3, [QUESTION] * 2 + ["And this?"])):
        ids, skip = ids_of(name, *talk[:length])
        assert question_at(tokenizer_of(name), ids, skip, len(expected)) == expected
    silent = [said("user", "", 1), said("assistant", "Yes?"), said("user", QUESTION)]
    ids, skip = ids_of(name, *silent)
    assert question_at(tokenizer_of(name), ids, skip, 2) == [QUESTION, QUESTION]
    assert question_at(tokenizer_of(name), [], skip, 1) == [""]


WRITTEN = {
    "Picture 1: <image>Picture 2: <image>{}": "vision ids",
    "<0.5 seconds><image><12.0 seconds><image>{}": "times of frames",
    "Here is the original image <image> and here are some crops to help you see better <image> <image>{}": "crops",
}


@pytest.mark.parametrize("written", WRITTEN, ids=WRITTEN.values())
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "gemma3", "llava"])
def test_what_is_written_beside_images_is_not_the_users_but_the_same_typed_is(name, written):
    assert found(name, said("user", written.format(QUESTION))) == QUESTION
    typed = written.replace("<image>", "").format("?")
    assert found(name, said("user", typed)) == " ".join(typed.split())


def test_a_template_is_rendered_once_per_tokenizer(monkeypatch):
    tokenizer = CHATS["qwen3_vl"].tokenizer()
    rendered = []
    stock = tokenizer.apply_chat_template
    monkeypatch.setattr(tokenizer, "apply_chat_template", lambda *a, **b: rendered.append(1) or stock(*a, **b))
    ids = tokenizer("<|im_start|>user\nWhere?<|im_end|>\n")["input_ids"]
    assert questions(tokenizer, [ids] * 3, set()) == ["Where?"] * 3
    first = len(rendered)
    assert questions(tokenizer, [ids], set()) == ["Where?"]
    assert first == len(rendered) > 0


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no') }}", "{% broken", "{{ messages[9].content }}", "x"]
)
def test_where_a_template_cannot_be_read_known_marks_are(template):
    tokenizer = CHATS["chatml"].tokenizer()
    ids = tokenizer("<|im_start|>system\nDo.<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n")["input_ids"]
    assert questions(tokenizer, [ids], set(), template) == ["Where?"]


def test_the_template_that_is_given_rules():
    tokenizer = CHATS["chatml"].tokenizer()
    ids = tokenizer("USER: Where? ASSISTANT:")["input_ids"]
    assert questions(tokenizer, [ids], set()) == ["USER: Where? ASSISTANT:"]  # no turn of ChatML's: one question
    assert questions(tokenizer, [ids], set(), CHATS["llava"].template) == ["Where?"]


@pytest.mark.parametrize("name", CHATS)
def test_a_prompt_without_turns_is_the_question(name):
    tokenizer = tokenizer_of(name)
    image = tokenizer.convert_tokens_to_ids("<image>")
    ids = [image, *tokenizer("\nIs this\n the car of User?", add_special_tokens=False)["input_ids"]]
    assert questions(tokenizer, [ids, [], [image]], {image}) == ["Is this the car of User?", "", ""]


@pytest.mark.parametrize("name", [name for name in CHATS if CHATS[name].apart])
@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(text=st.text(alphabet=st.characters(exclude_categories=["Cs", "Co"]), max_size=40))
def test_users_may_type_anything(name, text):
    chat = CHATS[name]
    tokens = (*chat.special, *chat.added, "<image>", "<s>", "</s>", chat.bos)
    hypothesis.assume(not any(token in text for token in tokens))
    talk = [said("user", QUESTION, 1), said("assistant", text), said("user", f"a{text}b")]
    assert found(name, *talk) == " ".join(f"a{text}b".split())
