"""Nouns and their tokens: one sweep, words of all scripts, and no trace in the process."""

import gc
import logging
import os
import random
import subprocess
import sys
import threading
import warnings
import weakref
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import regex
import torch
from hypothesis import strategies as st

from foveate.text import nouns as module
from foveate.text.memory import remembered
from foveate.text.nouns import TAGGED, noun_ids, nouns_of, overlapping
from foveate.text.question import questions
from foveate.text.untouched import untouched
from templates import CHATS


def words(question):
    return [question[slice(*span)] for span in nouns_of(question).spans]


# One sweep


class Counted(int):
    """A number that counts how often it is compared."""

    comparisons = 0

    def __le__(self, other):
        Counted.comparisons += 1
        return int(self) <= other

    def __lt__(self, other):
        Counted.comparisons += 1
        return int(self) < other


def by_every_pair(offsets, spans):
    return [
        index
        for index, (start, end) in enumerate(offsets)
        if any(start < stop and begin < end for begin, stop in spans)
    ]


def pairs(numbers):
    return list(zip(numbers[::2], numbers[1::2], strict=False))


places = st.lists(st.integers(0, 60), max_size=40, unique=True).map(sorted).map(pairs)
# Bytes of one character have the same place.
tokens = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 4)), max_size=40).map(
    lambda some: [(start, start + length) for start, length in sorted(some)]
)


@hypothesis.given(tokens, places)
def test_the_sweep_finds_what_every_pair_of_token_and_word_finds(offsets, spans):
    assert list(overlapping(offsets, spans)) == by_every_pair(offsets, spans)


def test_the_sweep_compares_each_token_and_each_word_a_few_times():
    count = 24_800
    offsets = [(5 * token, 5 * token + 5) for token in range(count)]
    spans = [(Counted(10 * word), Counted(10 * word + 4)) for word in range(count // 2)]
    Counted.comparisons = 0
    assert len(list(overlapping(offsets, spans))) == count // 2
    assert Counted.comparisons <= 3 * (count + len(spans))


@pytest.mark.parametrize("length", [1, TAGGED - 1, TAGGED, TAGGED + 1, 120_000])
def test_long_questions_are_not_tagged(monkeypatch, length):
    seen = []
    monkeypatch.setattr(module, "_tagger", lambda: ("hanta", lambda text: seen.append(len(text)) or ()))
    text = ("a cat sat " * (length // 10 + 1))[:length]
    assert nouns_of(text).tagger == "content words"
    assert seen == ([length] if length <= TAGGED else [])


def test_each_question_is_worked_out_once(monkeypatch):
    tokenizer = CHATS["chatml"].tokenizer()
    calls = []
    monkeypatch.setattr(module, "nouns_of", lambda text: calls.append(text) or nouns_of(text))
    first = [noun_ids(tokenizer, "Where is the cat?") for _ in range(8)]
    assert len(calls) == 1
    assert len(set(first)) == 1
    assert (
        noun_ids(CHATS["chatml"].tokenizer(), "Where is the cat?") == first[0]
    )  # another tokenizer is asked itself
    assert len(calls) == 2


def test_what_is_remembered_is_bounded_and_lives_no_longer_than_its_owner():
    class Owner:
        pass

    calls = []

    @remembered(last=2)
    def square(owner, key):
        calls.append(key)
        return np.array(key**2)

    owner = Owner()
    for key in (1, 2, 1, 3, 1, 2):
        assert square(owner, key) == key**2
    assert calls == [1, 2, 3, 2]  # 2 was asked for longest ago when 3 came
    result, tie = weakref.ref(square(owner, 2)), weakref.ref(owner)
    del owner
    gc.collect()
    assert tie() is None
    assert result() is None


# Words of all scripts

# Text that must not be split, by the script it is of.
SCRIPTS = {
    "Devanagari": "लाल गाड़ी कितनी हैं",
    "Bengali": "গাড়ির রঙ কী",
    "Tamil": "காரின் நிறம் என்ன",
    "Telugu": "కారు రంగు ఏమిటి",
    "Malayalam": "കാറിന്റെ നിറം എന്താണ്",
    "Arabic with vowels": "مَا لَوْنُ السَّيَّارَةِ",
    "Persian with joiners": "رنگ خودرو‌ها چیست",
    "Hebrew with points": "מָה צֶבַע הַמְּכוֹנִית",
    "Greek": "τι χρώμα έχει το αυτοκίνητο",
    "Russian": "какого цвета машина",
    "Korean": "자동차는 무슨 색입니까",
    "Vietnamese, decomposed": "xe hơi màu gì",
    "Amharic": "የመኪናው ቀለም ምንድን ነው",
    "Burmese": "ကားအရောင်",
    "Thai": "รถสีอะไรที่นี่",
    "Lao": "ລົດສີຫຍັງ",
    "Khmer": "រថយន្តពណ៌អ្វី",
    "Chinese": "这辆车是什么颜色",
    "Japanese": "この車は何色ですか",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_words_are_split_at_blanks_alone(script):
    text = SCRIPTS[script]
    assert [text[slice(*span)] for span in module._content_words(f"«{text}»?")] != []
    found = [f"«{text}»?"[slice(*span)] for span in module._content_words(f"«{text}»?")]
    assert found == text.split()


@pytest.mark.parametrize("script", [script for script in SCRIPTS if "Vietnamese" not in script])
def test_taggers_are_not_asked_about_other_scripts_than_latin(monkeypatch, script):
    monkeypatch.setattr(module, "_tagger", lambda: pytest.fail("asked"))
    assert nouns_of(SCRIPTS[script]).tagger == "content words"
    assert words(f"What is “{SCRIPTS[script]}”?") == SCRIPTS[script].split()


@pytest.mark.parametrize(
    "text", ["Où est l'œuf?", "¿Dónde está el niño?", "Wo ist die Straße?", "5 µm, 3 °C, ½ cup"]
)
def test_latin_text_is_tagged(monkeypatch, text):
    asked = []
    monkeypatch.setattr(module, "_tagger", lambda: ("hanta", lambda text: asked.append(text) or ()))
    nouns_of(text)
    assert asked == [text]


@pytest.mark.parametrize("script", ["Thai", "Lao", "Khmer", "Chinese", "Japanese"])
def test_without_blanks_all_of_the_tokenizers_pieces_count(script):
    tokenizer = CHATS["chatml"].tokenizer()
    text = SCRIPTS[script]
    ids, tagger = noun_ids(tokenizer, f"{text}？")
    assert list(ids) == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tagger == "content words"


def test_english_function_words_do_not_count_and_signs_are_no_words():
    assert words("Is it ❤️ or 👍🏽? Здесь красный!") == ["Здесь", "красный"]


@hypothesis.given(st.text(max_size=60))
def test_words_hold_their_marks(text):
    """No word begins or ends inside a letter with its marks."""
    for start, end in module._content_words(text):
        assert regex.fullmatch(r"\p{L}\X*|\p{N}+", text[start:end])
        assert end == len(text) or not regex.match(r"\p{L}\p{M}", text[end - 1 : end + 1])


# No trace


def state():
    return {
        "random": random.getstate(),
        "numpy": str(np.random.get_state()),
        "torch": torch.get_rng_state().tolist(),
        "warnings": list(warnings.filters),
        "logging": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "levels": {
            name: logging.getLogger(name).level for name in list(logging.root.manager.loggerDict) if name in KNOWN
        },
        "dtype": torch.get_default_dtype(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads(), threading.active_count()),
        "errors": np.geterr(),
        "recursion": sys.getrecursionlimit(),
        "gradients": torch.is_grad_enabled(),
        "environment": dict(os.environ),
    }


KNOWN = {"transformers", "numpy", "torch", "urllib3", "asyncio"}


def disturb():
    """What a library might do where it is imported or loaded."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    warnings.simplefilter("ignore", UserWarning)
    warnings.filterwarnings("error", message="never")
    logging.root.setLevel(logging.DEBUG)
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    logging.disable(logging.WARNING)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(torch.get_num_threads() + 1)
    np.seterr(all="raise")


def test_loading_leaves_all_settings_as_they_were():
    before = state()
    with untouched():
        disturb()
        assert [name for name in before if state()[name] != before[name]] == [
            *("random", "numpy", "torch", "warnings", "logging"),
            *(["levels"] if before["levels"] else []),
            *("dtype", "threads", "errors"),
        ]
    assert state() == before


def test_settings_are_restored_after_an_error():
    before = state()

    def load():
        with untouched():
            disturb()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load()
    assert state() == before


def test_a_tagger_is_loaded_without_a_trace(monkeypatch):
    def load():
        disturb()
        return lambda text: ((0, 1),)

    monkeypatch.setattr(module, "TAGGERS", {"spacy": load})
    before = state()
    assert module._tagger.__wrapped__()[0] == "spacy"
    assert state() == before


def test_the_text_room_leaves_no_trace_in_a_new_process():
    """Nothing is imported yet there, so that all imports are seen."""
    script = """
import sys; sys.path.insert(0, sys.argv[1])
import tokenizers, transformers, foveate, templates, test_text_nouns as own
from foveate.text import clip, question, tokenizer
from transformers import PreTrainedTokenizerFast
made = {name: own.CHATS[name].tokenizer() for name in ("chatml", "llava")}
made["none"] = own.CHATS["chatml"].tokenizer(); made["none"].chat_template = None
before = own.state()
for tokenizer in made.values():
    ids = tokenizer("<|im_start|>user\\nWhere is the cat? ASSISTANT:")["input_ids"]
    own.questions(tokenizer, [ids], set()); question.question_at(tokenizer, ids, set(), 1)
    for text in ("Where is the cat?", own.SCRIPTS["Thai"], "the dog " * 4000, ""):
        own.noun_ids(tokenizer, text)
after = own.state()
print([name for name in before if before[name] != after[name]])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent)], capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_long_prompts_raise_no_warning_of_a_tokenizer(caplog):
    tokenizer = CHATS["chatml"].tokenizer()
    tokenizer.model_max_length = 8
    ids = tokenizer("a cat " * 50, verbose=False)["input_ids"]
    noun_ids(tokenizer, questions(tokenizer, [ids], set())[0])
    assert not caplog.records
