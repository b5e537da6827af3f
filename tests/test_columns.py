"""Columns that are not dropped keep their order and their padding: a fuzz over prompts.

Rows are padded in front, behind or both, have holes in their text, hold several images or none, or are padding
alone. Everything that reads columns must find them where stock has them, or where masking leaves them.

The suite tries 500 prompts. ``FOVEATE_EXAMPLES=10000 pytest tests/test_columns.py`` tries as many as you like.
"""

import os
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import foveate
from test_families import masked, model_of
from zoo import ZOO
from zoo.animal import PAD, TEXT

EXAMPLES = int(os.environ.get("FOVEATE_EXAMPLES", "500"))
# One axis and several, one run of tokens per image and several, one entry per image and per row.
KINDS = ("llava", "llava_next", "mistral3", "internvl", "idefics3", "qwen2_5_vl", "qwen3_vl_video", "gemma3")
# Stock finds no positions for a row of padding alone.
NO_EMPTY_ROWS = ("qwen2_5_vl", "qwen3_vl_video")
METHODS = (foveate.RRQR(), foveate.Random(), foveate.UniformGrid())
IGNORED = -100


@dataclass(frozen=True)
class Row:
    """Lengths of the text before, between and after images; padding around it; places of holes in the text."""

    text: tuple[int, ...]
    left: int = 0
    right: int = 0
    holes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Case:
    kind: str
    rows: tuple[Row, ...]
    keep: float
    method: foveate.Method
    seed: int
    options: tuple[tuple[str, object], ...] = ()
    mask: str = "long"

    def inputs(self):
        """What a processor might give."""
        animal, generator = ZOO[self.kind], torch.Generator().manual_seed(self.seed)
        pictures = animal.pictures([len(row.text) - 1 for row in self.rows], generator)
        written = [_written(row, own, generator) for row, own in zip(self.rows, pictures, strict=True)]
        width = max(row.left + len(ids) + row.right for row, (ids, _) in zip(self.rows, written, strict=True))
        ids = torch.full((len(self.rows), width), PAD)
        mask = torch.zeros_like(ids)
        for number, (row, (own, text)) in enumerate(zip(self.rows, written, strict=True)):
            # A row that is padded in front alone stays so.
            start = row.left if row.right else width - len(own)
            ids[number, start : start + len(own)] = torch.tensor(own, dtype=torch.long)
            mask[number, start : start + len(own)] = 1
            holes = [start + text[hole % len(text)] for hole in row.holes if text]
            mask[number, holes] = 0
        marks = animal.mark(ids, tuple(map(len, pictures)))
        given = {"input_ids": ids, "attention_mask": mask, **animal.collate(pictures), **marks}
        if self.mask == "none" and bool(mask.all()):
            del given["attention_mask"]
        elif self.mask == "bool":
            given["attention_mask"] = mask.bool()
        return given

    def labels(self, inputs):
        """``[B, L + 1]``: what follows on each column, and on the last; where a column of text comes before."""
        generator = torch.Generator().manual_seed(self.seed)
        attended, visual = attended_of(inputs), visual_of(self.kind, inputs)
        labels = torch.randint(TEXT.start, TEXT.stop, inputs["input_ids"].shape, generator=generator)
        asked = attended & (torch.rand(labels.shape, generator=generator) < 0.7)
        text_before = (attended & ~visual).long().cumsum(1) - (attended & ~visual).long() > 0
        labels = labels.masked_fill(~(asked & text_before), IGNORED)
        ends = torch.where(attended[:, -1:], TEXT.start, IGNORED)
        return torch.cat([labels, ends], dim=1)


def _written(row, pictures, generator):
    """Its ids, and where its text is among them."""
    ids, text = [], []
    for number, length in enumerate(row.text):
        text += range(len(ids), len(ids) + length)
        ids += torch.randint(TEXT.start, TEXT.stop, (length,), generator=generator).tolist()
        ids += pictures[number].ids if number < len(pictures) else []
    return ids, text


def attended_of(inputs):
    mask = inputs.get("attention_mask")
    return torch.ones_like(inputs["input_ids"]).bool() if mask is None else mask.bool()


def visual_of(kind, inputs):
    return torch.isin(inputs["input_ids"], torch.tensor(ZOO[kind].placeholders))


def rows_of(sides):
    lengths = st.lists(st.integers(0, 4), min_size=1, max_size=3).map(tuple)
    pad = st.integers(0, 3)
    return st.builds(
        Row,
        text=lengths,
        left=pad,
        right=pad if sides == "both" else st.just(0),
        holes=st.lists(st.integers(0, 9), max_size=2).map(tuple),
    )


def cases(sides):
    rows = st.lists(rows_of(sides), min_size=1, max_size=3).map(tuple)
    with_images = rows.filter(lambda found: any(len(row.text) > 1 for row in found))
    return st.builds(
        Case,
        kind=st.sampled_from(KINDS),
        rows=with_images,
        keep=st.sampled_from((0.3, 0.5, 0.8)),
        method=st.sampled_from(METHODS),
        seed=st.integers(0, 3),
        options=st.sampled_from(((), (("use_cache", False),))),
        mask=st.sampled_from(("long", "bool", "none")),
    ).filter(lambda case: case.kind not in NO_EMPTY_ROWS or all(map(has_tokens, case.rows)))


def has_tokens(row):
    return len(row.text) > 1 or row.text[0] > len({hole % row.text[0] for hole in row.holes if row.text[0]})


def fuzz(sides, share):
    """Run a test on its share of the examples."""

    def decorated(test):
        limits = settings(
            max_examples=max(1, int(EXAMPLES * share)),
            deadline=None,
            derandomize=True,
            report_multiple_bugs=False,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        )
        return limits(given(cases(sides))(test))

    return decorated


def oracle(case, inputs, pruned, plain):
    """The full prompt with what is dropped masked, and the columns that are left: attended, and padding."""
    inputs = {**inputs, "attention_mask": attended_of(inputs).long()}
    full, stays = masked(case.kind, inputs, pruned)
    if plain and not hasattr(model_of(case.kind).base_model, "get_rope_index"):
        ids = inputs["input_ids"]
        full["position_ids"] = torch.arange(ids.shape[1]).expand(ids.shape)  # a plain forward counts all columns
    return full, stays | ~attended_of(inputs)


def pairs(ours, expected, left, attended):
    """``[n, D]`` each: what stands in the columns of ours, and in those of the full prompt, from behind."""
    found, wanted = [], []
    for row in range(len(left)):
        columns = left[row].nonzero().flatten()
        width = min(ours.shape[1], len(columns))
        gone, columns = columns[: len(columns) - width], columns[len(columns) - width :]
        assert not attended[row, gone].any()
        real = attended[row, columns]
        found.append(ours[row, ours.shape[1] - width :][real])
        wanted.append(expected[row, columns][real])
    return torch.cat(found), torch.cat(wanted)


def loss_of(logits, labels, left):
    """The loss of each column that is left, on what follows it among those."""
    predictions, targets = [], []
    for row in range(len(left)):
        columns = left[row].nonzero().flatten()
        predictions.append(logits[row, columns])
        targets.append(labels[row, [*columns[1:].tolist(), labels.shape[1] - 1]])
    return torch.nn.functional.cross_entropy(torch.cat(predictions), torch.cat(targets), ignore_index=IGNORED)


def close(ours, expected):
    return torch.allclose(ours, expected, atol=1e-4, equal_nan=True)


@fuzz("both", 0.25)
@torch.no_grad()
def test_with_all_tokens_kept_every_column_is_stocks(case):
    model, inputs = model_of(case.kind), case.inputs()
    labels = case.labels(inputs)
    inputs |= dict(case.options) | {"labels": labels[:, :-1]}
    shifted = {**inputs, "shift_labels": labels[:, 1:].contiguous()}
    stock = [model(**inputs), model(**shifted)]
    with foveate.attach(model, case.method, keep=1.0):
        ours = [model(**inputs), model(**shifted)]
    attended = attended_of(inputs)
    for own, expected in zip(ours, stock, strict=True):
        assert own.logits.shape == expected.logits.shape
        assert close(own.logits[attended], expected.logits[attended])
        assert close(own.loss, expected.loss)


@fuzz("both", 0.5)
@torch.no_grad()
def test_columns_that_stay_are_where_masking_leaves_them(case):
    model, inputs = model_of(case.kind), case.inputs()
    labels = case.labels(inputs)
    given = {**inputs, **dict(case.options), "labels": labels[:, :-1]}
    with foveate.attach(model, case.method, keep=case.keep) as attached:
        output, pruned = model(**given), attached.last
        shifted = model(**given, shift_labels=labels[:, 1:])
        tail = model(**{**inputs, **dict(case.options)}, logits_to_keep=2)
    full, left = oracle(case, inputs, pruned, plain=True)
    expected, attended = model(**full).logits, attended_of(inputs)
    assert close(*pairs(output.logits, expected, left, attended))
    check_ends(case, inputs, output.logits, expected)
    assert close(tail.logits, output.logits[:, -2:])
    end = labels[:, -1:].clone().fill_(IGNORED)
    assert close(output.loss, loss_of(expected, torch.cat([labels[:, :-1], end], dim=1), left))
    assert close(shifted.loss, loss_of(expected, labels, left))


def check_ends(case, inputs, ours, expected):
    """The last columns, as many as reach into no image, are the last columns of stock."""
    visual, attended = visual_of(case.kind, inputs), attended_of(inputs)
    for row, marks in enumerate(visual):
        last = int(marks.nonzero().max()) if marks.any() else -1
        number = min(len(marks) - 1 - last, ours.shape[1])
        real = attended[row, len(marks) - number :]
        assert close(ours[row, ours.shape[1] - number :][real], expected[row, expected.shape[1] - number :][real])


@fuzz("left", 0.25)
@torch.no_grad()
def test_answers_are_those_of_masking(case):
    model, inputs = model_of(case.kind), case.inputs()
    if not attended_of(inputs)[:, -1:].any(dim=0).all():
        return
    pruned = foveate.prune(model, inputs, case.method, keep=case.keep)
    full, _ = oracle(case, inputs, pruned, plain=False)
    options = {"max_new_tokens": 3, "return_dict_in_generate": True, "output_logits": True}
    ours, expected = (model.generate(**given, **options) for given in (pruned, full))
    asked = attended_of(inputs)[:, -1]  # a row that ends in a hole has no last word
    assert torch.equal(ours.sequences[asked, -3:], expected.sequences[asked, -3:])
    assert close(torch.stack(ours.logits)[:, asked], torch.stack(expected.logits)[:, asked])


# Controls: each must fail the comparison that the tests above pass.

CONTROL = Case("llava", (Row((3, 4), 2, 1), Row((2,), 1, 2)), 0.5, foveate.Random(), 0)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("moved", ["columns", "padding", "choice", "labels"])
def test_control_what_is_moved_by_one_differs(kind, moved):
    case = replace(CONTROL, kind=kind)
    model, inputs = model_of(kind), case.inputs()
    labels = case.labels(inputs)
    with foveate.attach(model, case.method, keep=case.keep) as attached:
        output, pruned = model(**inputs, labels=labels[:, :-1]), attached.last
    full, left = oracle(case, inputs, pruned, plain=True)
    attended, logits = attended_of(inputs), output.logits
    if moved == "labels":
        expected = loss_of(model(**full).logits, labels.roll(1, dims=1), left)
        assert (output.loss - expected).abs() > 0.01
        return
    if moved == "columns":
        logits = logits.roll(1, dims=1)
    elif moved == "padding":
        left = left & attended  # what a shrink that gathers attended columns alone would give
    else:
        full, left = oracle(case, inputs, next_choice(pruned), plain=True)
    found, wanted = pairs(logits, model(**full).logits, left, attended)
    assert not close(found, wanted)


def next_choice(pruned):
    """Each token that is kept is the next one instead."""
    kept = [(own + 1) % n for own, n in zip(pruned.kept, pruned.report.tokens_before, strict=True)]
    return SimpleNamespace(kept=kept, kinds=pruned.kinds, report=pruned.report)
