"""Going on after an answer, by hand or with a second turn on its cache, as in the unpruned conversation."""

import inspect

import pytest
import torch
import transformers
from packaging.version import Version

import foveate
from conftest import CACHE
from foveate.chat.turns import continued
from test_families import NAMES, VERSION, model_of, visual
from zoo import ZOO
from zoo.animal import TEXT

# PaliGemma's prompt sees ahead of itself: what is in the cache was computed without the second turn, in stock too.
TURNED = [name for name in NAMES if name != "paligemma"]
# Seen in 5.18: on a cache with gaps, stock masks the image tokens of a later turn wrongly.
PICTURED = [name for name in TURNED if name != "gemma3" or Version("5.23.0") <= VERSION]


def text(length, seed=5):
    return torch.randint(TEXT.start, TEXT.stop, (1, length), generator=torch.Generator().manual_seed(seed))


def whole(name, turns, inserted):
    """Stock inputs of the whole conversation: the prompts of all turns, with the answers between."""
    inputs = {}
    for key in turns[0]:
        parts = [turn[key] for turn in turns if key in turn]
        per_token = parts[0].shape == turns[0]["input_ids"].shape
        if per_token:
            pieces = [parts[0]]
            for answer, part in zip(inserted, parts[1:], strict=False):
                pieces += [
                    answer if key == "input_ids" else torch.full_like(answer, int(key == "attention_mask")),
                    part,
                ]
            inputs[key] = torch.cat(pieces, dim=1)
        else:
            inputs[key] = torch.cat(parts)
    return inputs


def expected_next(name, inputs, keeps, new):
    """What the stock model says after the whole conversation, dropped tokens masked."""
    model, places = model_of(name), visual(name, inputs).nonzero()[:, 1]
    stays = inputs["attention_mask"].bool()
    offset = 0
    for before, kept in keeps:
        dropped = torch.ones(before, dtype=torch.bool)
        dropped[kept] = False
        stays[0, places[offset : offset + before][dropped]] = False
        offset += before
    mask = stays.long()
    if hasattr(model.base_model, "get_rope_index"):
        names = inspect.signature(model.base_model.get_rope_index).parameters
        axes, _ = model.base_model.get_rope_index(**{key: inputs[key] for key in names if key in inputs})
        ids = torch.cat([(mask.cumsum(-1) - 1).clamp(min=0)[None], axes])
    else:
        ids = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    full = {**inputs, "attention_mask": mask, "position_ids": ids}
    full.pop("labels", None)
    return model.generate(**full, max_new_tokens=new)[:, -new:]


def answered(name, inputs):
    pruned = foveate.prune(model_of(name), inputs, foveate.RRQR(), keep=0.5)
    output = model_of(name).generate(**pruned, max_new_tokens=4, return_dict_in_generate=True)
    return pruned, output, output.sequences[:, -4:]


def best(name, output):
    """The next token, none that stands for pictures, as the zoo's generation settings have it."""
    logits = output.logits[:, -1:].clone()
    logits[..., list(model_of(name).generation_config.suppress_tokens)] = -torch.inf
    return logits.argmax(-1)


def keeps_of(*turns):
    return [pair for pruned in turns for pair in zip(pruned.report.tokens_before, pruned.kept, strict=True)]


@pytest.mark.parametrize("name", TURNED)
def test_a_second_turn_without_an_image(name):
    inputs = ZOO[name].prompt((1,))
    pruned, output, answer = answered(name, inputs)
    new = text(6)
    arguments = continued(pruned, output, new)
    ours = model_of(name).generate(**arguments, max_new_tokens=5)[:, -5:]
    second = {key: new if key == "input_ids" else torch.full_like(new, int(key == "attention_mask"))
              for key in inputs if inputs[key].shape == inputs["input_ids"].shape}  # fmt: skip
    conversation = whole(name, [inputs, second], [answer])
    assert ours.tolist() == expected_next(name, conversation, keeps_of(pruned), 5).tolist()


@pytest.mark.parametrize("name", PICTURED)
def test_a_second_turn_with_a_new_image(name):
    inputs = ZOO[name].prompt((1,))
    pruned, output, answer = answered(name, inputs)
    second = ZOO[name].prompt((1,), seed=7)
    following = foveate.prune(model_of(name), second, foveate.RRQR(), keep=0.5)
    ours = model_of(name).generate(**continued(pruned, output, following), max_new_tokens=5)[:, -5:]
    conversation = whole(name, [inputs, second], [answer])
    assert ours.tolist() == expected_next(name, conversation, keeps_of(pruned, following), 5).tolist()


def as_stock(name, inputs, ids):
    """What stock takes for a text turn: its ids, and what else is there of each token."""
    return {key: ids if key == "input_ids" else torch.full_like(ids, int(key == "attention_mask"))
            for key in inputs if inputs[key].shape == inputs["input_ids"].shape}  # fmt: skip


@pytest.mark.parametrize("name", PICTURED)
def test_turn_after_turn(name):
    """A picture, a text, another picture, and a text."""
    model, inputs, later = model_of(name), ZOO[name].prompt((1,)), ZOO[name].prompt((1,), seed=7)
    pruned, output, answer = answered(name, inputs)
    turns, answers, turn = [inputs], [answer], pruned
    picture = foveate.prune(model, later, foveate.RRQR(), keep=0.5)
    for new in (text(6), picture, text(5, seed=8)):
        turn = continued(turn, output, new)
        output = model.generate(**turn, max_new_tokens=4, return_dict_in_generate=True)
        turns.append(later if new is picture else as_stock(name, inputs, new))
        keeps = keeps_of(pruned, picture) if len(turns) > 2 else keeps_of(pruned)
        conversation = whole(name, turns, answers)
        answers.append(output.sequences[:, -4:])
        assert answers[-1].tolist() == expected_next(name, conversation, keeps, 4).tolist()


@pytest.mark.parametrize("own_cache", [False, True])
@pytest.mark.parametrize("name", TURNED)
def test_stock_turns_on_a_cache_inside_a_block(name, own_cache):
    """The whole conversation's ids and the cache, as of stock: with all tokens kept, it says what stock says."""
    model, inputs = model_of(name), ZOO[name].prompt((1,))

    def said(turns):
        options = {CACHE: transformers.DynamicCache(config=model.config.get_text_config())}
        output = model.generate(
            **inputs, **(options if own_cache else {}), max_new_tokens=4, return_dict_in_generate=True
        )
        cache, found = output[CACHE], [output.sequences[:, -4:].tolist()]
        sequences = output.sequences
        for turn in turns:
            ids = torch.cat([sequences, turn], dim=1)
            types = {key: torch.cat([inputs[key], torch.zeros_like(ids[:, inputs[key].shape[1] :])], 1)
                     for key in ("token_type_ids", "mm_token_type_ids") if key in inputs}  # fmt: skip
            sequences = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                **{CACHE: cache},
                max_new_tokens=4,
                **types,
            )
            assert sequences[:, : ids.shape[1]].tolist() == ids.tolist()
            found.append(sequences[:, -4:].tolist())
        return found

    turns = [text(6), text(5, seed=8)]
    stock = said(turns)
    with foveate.attach(model, foveate.RRQR(), keep=1.0):
        assert said(turns) == stock
    with foveate.attach(model, foveate.RRQR(), keep=0.5) as attached:
        ours = said(turns)
    conversation = whole(
        name,
        [inputs, *(as_stock(name, inputs, turn) for turn in turns)],
        [torch.tensor(answer) for answer in ours[:2]],
    )
    assert ours[2] == expected_next(name, conversation, keeps_of(attached.last), 4).tolist()


@pytest.mark.parametrize("name", TURNED)
def test_going_on_after_a_block(name):
    model, inputs = model_of(name), ZOO[name].prompt((1,))
    pruned, output, _ = answered(name, inputs)
    expected = model.generate(**continued(pruned, output, text(6)), max_new_tokens=5)[:, -5:]
    with foveate.attach(model, foveate.RRQR(), keep=0.5) as attached:
        output = model.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True)
    turn = continued(attached.last, output, {"input_ids": text(6)})
    assert model.generate(**turn, max_new_tokens=5)[:, -5:].tolist() == expected.tolist()


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("qwen", "glm"))])
def test_the_model_reads_the_rope_deltas_of_the_latest_prune(name):
    """Steps of one row by hand, without positions or mask: with both, stock fails."""
    model, inputs = model_of(name), ZOO[name].prompt((1,))
    pruned = foveate.prune(model, inputs, foveate.RRQR(), keep=0.5)
    expected = model.generate(**pruned, max_new_tokens=3, output_logits=True, return_dict_in_generate=True)

    def worst():
        with torch.no_grad():
            output, differences = model(**pruned), []
            for step in range(2):
                token = expected.sequences[:, step - 3 : step - 2]
                output = model(input_ids=token, **{CACHE: output[CACHE]})
                differences.append(float((output.logits[:, -1] - expected.logits[step + 1]).abs().max()))
        return max(differences)

    foveate.prune(model, inputs, foveate.RRQR(), keep=0.5)
    assert worst() < 1e-4
    model.base_model.rope_deltas = pruned.rope_deltas + 7  # the control
    assert worst() > 0.01


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("qwen", "glm"))])
def test_steps_by_hand_read_rope_deltas(name):
    model, inputs = model_of(name), ZOO[name].prompt((1, 2))
    pruned = foveate.prune(model, inputs, foveate.RRQR(), keep=0.5)
    expected = model.generate(**pruned, max_new_tokens=4)[:, -4:]
    pruned = foveate.prune(model, inputs, foveate.RRQR(), keep=0.5)
    with torch.no_grad():
        output = model(**pruned)
        found = [best(name, output)]
        length = pruned["attention_mask"].sum(-1, keepdim=True)
        for step in range(3):
            ids = (length + step + model.base_model.rope_deltas).expand(3, *length.shape[:1], 1)
            mask = torch.cat([pruned["attention_mask"], torch.ones(2, step + 1, dtype=torch.long)], 1)
            output = model(input_ids=found[-1], attention_mask=mask, position_ids=ids, **{CACHE: output[CACHE]})
            found.append(best(name, output))
    assert torch.cat(found, 1).tolist() == expected.tolist()


def test_what_cannot_be_continued_is_refused():
    name = "llava"
    model = model_of(name)

    def asked(rows=(1,), **options):
        pruned = foveate.prune(model, ZOO[name].prompt(rows), foveate.RRQR(), keep=5)
        options = {"max_new_tokens": 2, "return_dict_in_generate": True, **options}
        return pruned, model.generate(**{**pruned, **options})

    for arguments, message in [
        (asked((1, 1)), "one conversation at a time"),
        (asked(num_beams=2), "beam search: allowed is one conversation at a time"),
        (asked(num_return_sequences=2, do_sample=True), "2 sequences: allowed is one"),
        (asked(use_cache=False), "without its cache"),
        (asked(return_dict_in_generate=False), "type Tensor without its cache"),
    ]:
        with pytest.raises(foveate.InvalidInputs, match=message):
            continued(*arguments, text(3))
    pruned, output = asked()
    for following, message in [
        ("And now?", "following of type str: allowed are ids"),
        (text(3)[0], r"following of shape \(3,\)"),
        (text(3).repeat(2, 1), r"following of shape \(2, 3\)"),
        (text(3).float(), r"following of shape \(1, 3\)"),
        (foveate.prune(model, ZOO[name].prompt((1, 1)), foveate.RRQR(), keep=5), "a new turn of 2 rows"),
    ]:
        with pytest.raises(foveate.InvalidInputs, match=message):
            continued(pruned, output, following)
    other = foveate.prune(model, ZOO[name].prompt((1,)), foveate.RRQR(), keep=7)
    with pytest.raises(foveate.InvalidInputs, match="allowed is the output of this prompt"):
        continued(other, output, text(3))
    model.generate(**continued(pruned, output, text(3)), max_new_tokens=2)
    with pytest.raises(foveate.InvalidInputs, match="continued once"):
        continued(pruned, output, text(3))


def test_a_cache_without_its_conversation_is_refused_inside_a_block():
    model, inputs = model_of("llava"), ZOO["llava"].prompt((1,))
    with foveate.attach(model, foveate.RRQR(), keep=5):
        output = model.generate(**inputs, max_new_tokens=2, return_dict_in_generate=True)
        with pytest.raises(foveate.InvalidInputs, match="allowed is the whole conversation"):
            model.generate(input_ids=text(3), **{CACHE: output[CACHE]})
