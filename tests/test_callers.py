"""What callers hand to generate() acts inside a block as it does without, whatever its type."""

import inspect
from functools import cache, partial

import pytest
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation import logits_process, stopping_criteria

import foveate
from conftest import IMAGE_TOKEN, PAD, tiny_llava, tiny_prompt
from foveate import mini
from foveate.chat.full_prompt import FullPrompt

INPUTS = tiny_prompt()
WIDTH = INPUTS["input_ids"].shape[1]
EVERYTHING = foveate.UniformGrid()


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


@cache
def tokenizer():
    return mini.load()[1].tokenizer


# Of each class that transformers has: sane arguments, and what makes generate() add its own of the type.
PROCESSORS = {
    "MinLengthLogitsProcessor": ({"min_length": WIDTH + 6, "eos_token_id": 62}, {"min_length": WIDTH + 9}),
    "MinNewTokensLengthLogitsProcessor": (
        {"prompt_length_to_skip": WIDTH, "min_new_tokens": 5, "eos_token_id": 62},
        {"min_new_tokens": 3},
    ),
    "TemperatureLogitsWarper": ({"temperature": 0.7}, {}),
    "RepetitionPenaltyLogitsProcessor": ({"penalty": 1.5}, {"repetition_penalty": 3.0}),
    "EncoderRepetitionPenaltyLogitsProcessor": (
        {"penalty": 1.5, "encoder_input_ids": INPUTS["input_ids"]},
        {"encoder_repetition_penalty": 3.0},
    ),
    "TopPLogitsWarper": ({"top_p": 0.9}, {}),
    "TopKLogitsWarper": ({"top_k": 5}, {}),
    "TopHLogitsWarper": ({"top_h": 0.5}, {}),
    "MinPLogitsWarper": ({"min_p": 0.1}, {}),
    "TypicalLogitsWarper": ({"mass": 0.9}, {}),
    "EpsilonLogitsWarper": ({"epsilon": 0.01}, {}),
    "EtaLogitsWarper": ({"epsilon": 0.01}, {}),
    "NoRepeatNGramLogitsProcessor": ({"ngram_size": 1}, {"no_repeat_ngram_size": 3}),
    "EncoderNoRepeatNGramLogitsProcessor": (
        {"encoder_ngram_size": 1, "encoder_input_ids": INPUTS["input_ids"]},
        {"encoder_no_repeat_ngram_size": 2},
    ),
    "SequenceBiasLogitsProcessor": ({"sequence_bias": [[[62], 4.0]]}, {"sequence_bias": [[[49], 9.0]]}),
    "NoBadWordsLogitsProcessor": ({"bad_words_ids": [[62]]}, {"bad_words_ids": [[49]]}),
    "PrefixConstrainedLogitsProcessor": (
        {"prefix_allowed_tokens_fn": lambda row, ids: [len(ids) % 100, 3], "num_beams": 1},
        {},
    ),
    "ForcedBOSTokenLogitsProcessor": ({"bos_token_id": 1}, {"forced_bos_token_id": 2}),
    "ForcedEOSTokenLogitsProcessor": (
        {"max_length": WIDTH + 4, "eos_token_id": 5},
        {"forced_eos_token_id": 6},
    ),
    "InfNanRemoveLogitsProcessor": ({}, {"remove_invalid_values": True}),
    "ExponentialDecayLengthPenalty": (
        {"exponential_decay_length_penalty": (2, 1.5), "eos_token_id": 62, "input_ids_seq_length": WIDTH},
        {},
    ),
    "LogitNormalization": ({}, {"renormalize_logits": True}),
    "SuppressTokensAtBeginLogitsProcessor": (
        {"begin_suppress_tokens": [62], "begin_index": WIDTH},
        {"begin_suppress_tokens": [49]},
    ),
    "SuppressTokensLogitsProcessor": ({"suppress_tokens": [62, IMAGE_TOKEN]}, {"suppress_tokens": [49]}),
    "BarkEosPrioritizerLogitsProcessor": ({"eos_token_id": 5, "min_eos_p": 0.9}, {}),
    "AlternatingCodebooksLogitsProcessor": (
        {"input_start_len": WIDTH, "semantic_vocab_size": 20, "codebook_size": 50},
        {},
    ),
    "WatermarkLogitsProcessor": ({"vocab_size": 128, "device": "cpu"}, {}),
    "SynthIDTextWatermarkLogitsProcessor": (
        {
            "ngram_len": 5,
            "keys": [1, 2, 3],
            "sampling_table_size": 64,
            "sampling_table_seed": 0,
            "context_history_size": 8,
            "device": torch.device("cpu"),
        },
        {},
    ),
    "UnbatchedClassifierFreeGuidanceLogitsProcessor": ({"guidance_scale": 1.5}, {}),
}
CRITERIA = {
    "MaxLengthCriteria": {"max_length": WIDTH + 9},
    "MaxTimeCriteria": {"max_time": 1000.0},
    "StopStringCriteria": {"tokenizer": tokenizer(), "stop_strings": [tokenizer().decode([54])]},
    "EosTokenCriteria": {"eos_token_id": 118},
    "ConfidenceCriteria": {"assistant_confidence_threshold": 0.0},
}
ENDS = {
    "EosTokenCriteria": 3,
    "MaxLengthCriteria": 9,
    "StopStringCriteria": 4,
}  # new tokens
# Of other tasks: they take scores of several channels, of speech, or of doubled batches.
ELSEWHERE = {
    "WhisperTimeStampLogitsProcessor",
    "WhisperNoSpeechDetection",
    "ClassifierFreeGuidanceLogitsProcessor",
    "DiaClassifierFreeGuidanceLogitsProcessor",
    "DiaEOSChannelFilterLogitsProcessor",
    "DiaEOSDelayPatternLogitsProcessor",
}


def classes(module, base):
    return {
        name: kind
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and issubclass(kind, base) and kind is not base
    }


def both(model, make, **options):
    """New tokens of stock, and inside a block that keeps all."""
    options = {"max_new_tokens": 12, **options}
    stock = model.generate(**INPUTS, **make(), **options)[:, WIDTH:].tolist()
    with foveate.attach(model, EVERYTHING, keep=1.0):
        return stock, model.generate(**INPUTS, **make(), **options)[:, WIDTH:].tolist()


def test_no_class_is_forgotten():
    known = set(PROCESSORS) | ELSEWHERE
    assert set(classes(logits_process, LogitsProcessor)) <= known
    assert set(classes(stopping_criteria, StoppingCriteria)) <= set(CRITERIA)


@pytest.mark.parametrize("of_generate", [False, True], ids=["alone", "beside generate's"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_a_processor_acts_as_stock_has_it(model, name, of_generate):
    kind = classes(logits_process, LogitsProcessor).get(name)
    arguments, options = PROCESSORS[name]
    if kind is None or (of_generate and not options):
        pytest.skip("not in this version, or generate() makes none")
    if "model" in inspect.signature(kind.__init__).parameters:
        arguments = {**arguments, "model": model}
    options = {"eos_token_id": 62, **options} if of_generate else {}
    stock, ours = both(model, lambda: {"logits_processor": [kind(**arguments)]}, **options)
    assert ours == stock


@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_acts_as_stock_has_it(model, name):
    kind = classes(stopping_criteria, StoppingCriteria)[name]
    options = {"max_new_tokens": None} if name == "MaxLengthCriteria" else {}
    if name == "ConfidenceCriteria":
        pytest.skip("it reads an assistant's scores")
    given = StoppingCriteriaList([kind(**CRITERIA[name])])
    stock, ours = both(model, lambda: {"stopping_criteria": given}, **options)
    assert ours == stock
    if name in ENDS:
        assert len(stock[0]) == ENDS[name]


@pytest.mark.parametrize("keep", [1.0, 5])
def test_a_length_criterion_counts_the_full_prompt(model, keep):
    with foveate.attach(model, EVERYTHING, keep=keep):
        criteria = StoppingCriteriaList([stopping_criteria.MaxLengthCriteria(max_length=WIDTH + 40)])
        assert model.generate(**INPUTS, stopping_criteria=criteria).shape[1] == WIDTH + 40


class Counting(LogitsProcessor):
    """It keeps state, has no plain class of its own in generate(), and asks for one argument more."""

    __slots__ = ("slotted",)

    def __init__(self):
        self.calls, self.seen, self.slotted = 0, [], 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        self.slotted += 1
        self.seen.append(input_ids)
        return scores


def test_state_stays_with_the_callers_object(model):
    counting = Counting()
    with foveate.attach(model, EVERYTHING, keep=5):
        model.generate(**INPUTS, max_new_tokens=3, logits_processor=[counting])
    assert counting.calls == counting.slotted == 3
    assert all(torch.equal(ids[:, :WIDTH], INPUTS["input_ids"]) for ids in counting.seen)
    assert type(counting) is Counting


def test_functions_partials_and_modules_are_taken(model):
    class Module(torch.nn.Module):
        def forward(self, ids, scores):
            widths.append(ids.shape[1])
            return scores

    def plain(ids, scores, more=None):
        widths.append(ids.shape[1])
        return scores

    for given in (plain, partial(plain, more=1), Module(), Counting().__call__):
        widths = []
        with foveate.attach(model, EVERYTHING, keep=5):
            model.generate(**INPUTS, max_new_tokens=2, logits_processor=[given])
        assert widths == [WIDTH, WIDTH + 1] or not widths


def test_what_stands_for_an_object_is_of_its_type():
    shown = FullPrompt(INPUTS["input_ids"], 10).shown({"logits_processor": [Counting()]})["logits_processor"][0]
    assert isinstance(shown, Counting)
    assert shown.calls == shown.slotted == 0
    assert list(inspect.signature(shown.__call__).parameters) == ["input_ids", "scores"]


@pytest.mark.parametrize("beams", [1, 3])
def test_allowed_prefixes_are_of_the_full_prompt(model, beams):
    def allowed(row, ids):
        assert torch.equal(ids[:WIDTH], INPUTS["input_ids"][row])
        return [len(ids) % 100, 3]

    stock, ours = both(model, lambda: {"prefix_allowed_tokens_fn": allowed, "num_beams": beams})
    assert ours == stock


LIMITS = {
    "keywords": lambda **limits: limits,
    "a config": lambda **limits: {
        "generation_config": GenerationConfig(**limits, pad_token_id=PAD, suppress_tokens=[IMAGE_TOKEN])
    },
    "a config and keywords": lambda max_length, **limits: {
        "max_length": max_length,
        "generation_config": GenerationConfig(
            **limits, max_length=WIDTH + 30, pad_token_id=PAD, suppress_tokens=[IMAGE_TOKEN]
        ),
    },
}


@pytest.mark.parametrize("where", LIMITS)
@pytest.mark.parametrize(
    ("limits", "new"),
    [({"max_length": WIDTH + 6}, 6), ({"max_length": WIDTH + 9, "min_length": WIDTH + 5}, None)],
)
def test_limits_count_the_full_prompt_wherever_they_stand(model, where, limits, new):
    options = LIMITS[where](**limits)
    config = options.get("generation_config")
    before = None if config is None else config.to_dict()
    for extra in ({}, {"eos_token_id": list(range(3, 100))}):  # which ends as early as it may
        expected = model.generate(**INPUTS, **options, **extra).shape
        with foveate.attach(model, EVERYTHING, keep=5):
            assert model.generate(**INPUTS, **options, **extra).shape == expected
        if new is not None and not extra:
            assert expected[1] == WIDTH + new
    assert config is None or config.to_dict() == before


@pytest.mark.parametrize("where", LIMITS)
def test_a_limit_that_the_prompt_has_passed(model, where):
    with (
        foveate.attach(model, EVERYTHING, keep=5),
        pytest.raises(foveate.InvalidInputs, match=f"max_length={WIDTH}: the prompt has {WIDTH}"),
    ):
        model.generate(**INPUTS, **LIMITS[where](max_length=WIDTH))
