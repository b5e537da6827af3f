"""Batch by batch of questions through all arms, so that an interrupted run can go on where it stopped."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from foveate.bench.arm import Arm
from foveate.bench.checkpoint import check_length, requests
from foveate.bench.quality.energy import DECIMALS, Energies
from foveate.bench.quality.items import Item
from foveate.bench.quality.store import Batch, Store
from foveate.errors import InvalidBudget
from foveate.families import family_of
from foveate.hf import names
from foveate.methods import UniformGrid
from foveate.methods.merging import Merging, Resizing
from foveate.prune import Prepared, prepare
from foveate.pruned import Pruned
from foveate.signals import Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH = 50  # questions that are answered together
BLOCK = 8  # batches within which questions are put in order: 400, mini's examination as it is by default
ANSWER_TOKENS = 24  # short answers, and mini's workings before them: 21 tokens at most

Progress = Callable[[str, int], None]  # is told what runs, and how many more answers there are


def settler(model: "PreTrainedModel", processor: Any, clip: str | None) -> Callable[[Arm], Arm]:
    """What decides the ``auto`` options of an arm's method here.

    It raises MissingSignal where the method needs a signal that is not to be had.
    """

    @cache
    def settle(arm: Arm) -> Arm:
        return replace(arm, method=Source.find(model, family_of(model), arm.prunes_with, processor, clip).method)

    return settle


@torch.inference_mode()
def run(
    model: "PreTrainedModel",
    processor: Any,
    arms: Sequence[Arm],
    items: Sequence[Item],
    store: Store,
    clip: str | None = None,
    progress: Progress = lambda arm, answers: None,
) -> None:
    """Let every arm answer every question that the store has no answer of; answers are greedy.

    Each image is encoded once for all arms.

    Args:
        model: any supported model.
        processor: its processor.
        arms: settled, a method's largest budget before its smaller ones.
        items: the questions.
        store: where answers are kept, batch by batch.
        clip: CLIP pair of the vision tower, as `foveate.prune`'s.
        progress: is told of every batch of answers.

    Raises:
        InvalidBudget: an arm handed on another number of tokens than asked for.
    """
    done = store.done()
    known = [done.get(arm.key, set()) for arm in arms]
    answered = {item.id for item in items if all(item.id in ids for ids in known)}
    if answered:
        progress("stored", len(answered) * len(arms))
    for batch in batches(items, answered):
        ids = {item.id for item in batch}
        missing = [arm for arm in arms if not ids <= done.get(arm.key, set())]
        if len(missing) < len(arms):
            progress("stored", len(batch) * (len(arms) - len(missing)))
        _run_batch(model, processor, missing, batch, store, clip, progress)


def batches(items: Sequence[Item], without: Collection[str] = ()) -> Iterator[list[Item]]:
    """The questions but those ``without``, block by block, those of a skill together.

    A batch takes as many steps as its longest answer has tokens, and answers to a skill are alike in that.
    """
    for first in range(0, len(items), BLOCK * BATCH):
        block = [item for item in items[first : first + BLOCK * BATCH] if item.id not in without]
        skills = list(dict.fromkeys(item.skill for item in block))
        ordered = sorted(block, key=lambda item: skills.index(item.skill))
        yield from (ordered[start : start + BATCH] for start in range(0, len(ordered), BATCH))


def _run_batch(
    model: "PreTrainedModel",
    processor: Any,
    arms: Sequence[Arm],
    batch: Sequence[Item],
    store: Store,
    clip: str | None,
    progress: Progress,
) -> None:
    inputs = requests(processor, [item.image() for item in batch], [item.question for item in batch])
    check_length(model, inputs, ANSWER_TOKENS)
    methods = list(dict.fromkeys([UniformGrid(), *(arm.prunes_with for arm in arms)]))
    prepared = prepare(model, inputs.to(model.device), methods, processor=processor, clip=clip)
    whole = prepared.keep(UniformGrid(), 1.0)
    everything = names.features(whole[names.ENCODED]["image"])
    energies: dict[str, Energies] = {}  # by method: its smaller budgets are mostly prefixes of its largest
    # Resizing arms first: they may not reach a count, which should be known before the others have run.
    done: dict[tuple[str, str, tuple[int, ...]], Batch] = {}  # budgets that come to the same counts run once
    for arm in sorted(arms, key=lambda arm: not isinstance(arm.method, Resizing)):
        outcome = (repr(arm.method), arm.positions, tuple(map(arm.budget.count, whole.report.tokens_before)))
        if outcome not in done:
            known = energies.setdefault(repr(arm.method), Energies(everything))
            done[outcome] = _answer(model, processor, prepared, arm, batch, known)
        method, positions, keep = arm.key
        store.add(replace(done[outcome], method=method, positions=positions, keep=keep))
        progress(arm.label, len(batch))


def _answer(
    model: "PreTrainedModel",
    processor: Any,
    prepared: Prepared,
    arm: Arm,
    batch: Sequence[Item],
    energies: Energies,
) -> Batch:
    start = time.perf_counter()
    pruned = prepared.keep(arm.prunes_with, arm.budget, positions=arm.positions)
    output = model.generate(**pruned, max_new_tokens=ANSWER_TOKENS, do_sample=False)
    seconds = time.perf_counter() - start
    _check_counts(arm, pruned)
    new = output[:, pruned["input_ids"].shape[1] :]
    answers = [str(text).strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
    method, positions, keep = arm.key
    return Batch(
        method=method,
        positions=positions,
        keep=keep,
        tokens=pruned.report.tokens_after,
        questions=[item.id for item in batch],
        skills=[item.skill for item in batch],
        right=[bool(item.right(answer)) for item, answer in zip(batch, answers, strict=True)],
        energy=_energy(pruned, energies),
        answers=answers,
        seconds=round(seconds, 3),
    )


def _energy(pruned: Pruned, energies: Energies) -> list[float]:
    if isinstance(pruned.report.method, Merging | Resizing):  # what it hands on are no rows of the features
        return [round(energy, DECIMALS) for energy in pruned.report.residual_energy]
    return energies.of(pruned.orders)


def _check_counts(arm: Arm, pruned: Pruned) -> None:
    """Refuse to compare unequal numbers of tokens.

    Raises:
        InvalidBudget: an image of this arm has another number of tokens than asked for.
    """
    for before, after in zip(pruned.report.tokens_before, pruned.report.tokens_after, strict=True):
        if after != arm.budget.count(before):
            raise InvalidBudget(
                f"{arm.label}: {after} visual tokens went to the language model, asked for were "
                f"{arm.budget.count(before)} of {before}: arms are compared at equal counts, choose others"
            )
