"""Going on after an answer, by hand or with a second turn on its cache, as in the unpruned conversation."""

import inspect

import pytest
import torch
from packaging.version import Version

import foveate
from foveate.turns import continued
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


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("qwen", "glm"))])
def test_steps_by_hand_read_rope_deltas(name):
    model, inputs = model_of(name), ZOO[name].prompt((1, 2))
    pruned = foveate.prune(model, inputs, foveate.RRQR(), keep=0.5)
    expected = model.generate(**pruned, max_new_tokens=4)[:, -4:]
    pruned = foveate.prune(model, inputs, foveate.RRQR(), keep=0.5)
    with torch.no_grad():
        output = model(**pruned, use_cache=True)
        found = [best(name, output)]
        length = pruned["attention_mask"].sum(-1, keepdim=True)
        for step in range(3):
            ids = (length + step + model.base_model.rope_deltas).expand(3, *length.shape[:1], 1)
            mask = torch.cat([pruned["attention_mask"], torch.ones(2, step + 1, dtype=torch.long)], 1)
            output = model(
                input_ids=found[-1], attention_mask=mask, position_ids=ids, past_key_values=output.past_key_values
            )
            found.append(best(name, output))
    assert torch.cat(found, 1).tolist() == expected.tolist()


def test_a_batch_and_an_output_without_a_cache_are_refused():
    name = "llava"
    model = model_of(name)
    pruned = foveate.prune(model, ZOO[name].prompt((1, 1)), foveate.RRQR(), keep=5)
    output = model.generate(**pruned, max_new_tokens=2, return_dict_in_generate=True)
    with pytest.raises(foveate.InvalidInputs, match="one conversation at a time"):
        continued(pruned, output, text(3))
    pruned = foveate.prune(model, ZOO[name].prompt((1,)), foveate.RRQR(), keep=5)
    output = model.generate(**pruned, max_new_tokens=2, return_dict_in_generate=True, use_cache=False)
    with pytest.raises(foveate.InvalidInputs, match="past_key_values"):
        continued(pruned, output, text(3))
