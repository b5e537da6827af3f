"""Case by case: all contestants warm up, are weighed, then pass round by round, each round in another order.

What drifts (heat, other work on the machine) then hits all alike, and a ratio is taken within a round.
"""

import gc
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from foveate.bench.checkpoint import check_length
from foveate.bench.machine import commit
from foveate.bench.speed.clock import Clock, clock_of
from foveate.bench.speed.contestants import Contestant
from foveate.bench.speed.memory import peak
from foveate.bench.speed.passing import passed
from foveate.bench.speed.queue import Counts, added_by, encoder_queue
from foveate.bench.speed.store import Case, Store, Timed, Weighed
from foveate.bench.speed.subject import Subject
from foveate.errors import InvalidInputs

Progress = Callable[[str, int], None]  # is told what runs, and how many more passes there are
DIGITS = 7  # of a second
# Of a full CPU torch (alloc_cpu.cpp) raises a plain RuntimeError; the second is what it says on Windows.
FULL = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")


@dataclass(frozen=True)
class Effort:
    """How much is run.

    Attributes:
        repeats: rounds, in each of which every contestant passes once.
        warmup: passes of each contestant before any counts; without any, what is weighed passes once before.
        new_tokens: of each answer.
    """

    repeats: int
    warmup: int
    new_tokens: int

    def passes(self, contestants: int) -> int:
        """Of a case."""
        return contestants * (self.repeats + self.warmup + 1)


def run(
    subject: Subject,
    contestants: Sequence[Contestant],
    batches: Sequence[int],
    store: Store,
    effort: Effort,
    *,
    clock: Clock | None = None,
    progress: Progress = lambda label, passes: None,
) -> list[Case]:
    """Do what the store does not know yet; the cases. A round that was cut is run again as a whole.

    Args:
        subject: what is timed.
        contestants: stock first.
        batches: rows.
        store: where results are kept, one by one.
        effort: how much.
        clock: None takes the device's.
        progress: is told of every pass.

    Raises:
        InvalidInputs: a case does not fit into memory.
    """
    clock = clock or clock_of(subject.model.device)
    cases = []
    for size in subject.sizes:
        for batch in batches:
            inputs = subject.inputs(size, batch)
            check_length(subject.model, inputs, effort.new_tokens)
            case = (subject.visual_tokens(inputs), batch)
            cases.append(case)
            try:
                _run_case(subject, contestants, case, inputs, store, effort, clock, progress)
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                raise InvalidInputs(
                    f"batch {batch} with {case[0]} visual tokens: out of memory; allowed is what fits, a smaller "
                    "--batch or --sizes"
                ) from error
    return cases


def order(contestants: Sequence[Contestant], number: int) -> list[Contestant]:
    """Of a round: drawn by its number, so that no one always follows the same one."""
    return random.Random(number).sample(contestants, len(contestants))


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in FULL)


def _run_case(
    subject: Subject,
    contestants: Sequence[Contestant],
    case: Case,
    inputs: dict[str, Any],
    store: Store,
    effort: Effort,
    clock: Clock,
    progress: Progress,
) -> None:
    known = store.rounds(case, [one.key for one in contestants])
    missing = [number for number in range(effort.repeats) if number not in known]
    unknown = [one for one in contestants if (case, one.key) not in store.weighed]
    cold = list(contestants) if missing else unknown
    done = effort.passes(len(contestants))
    done -= len(missing) * len(contestants) + len(unknown) + effort.warmup * len(cold)
    if done:
        progress("stored", done)
    for one in cold:
        for _ in range(effort.warmup):
            passed(subject, one, inputs, effort.new_tokens, clock)
            progress(f"{one.label}, warming up", 1)
    for one in unknown if not effort.warmup else ():
        # The first pass of all also pays for what is made once, such as arenas: no arm needs that by itself.
        passed(subject, one, inputs, effort.new_tokens, clock)
    encoder = encoder_queue(subject, inputs) if unknown else (0, 0)
    for one in unknown:
        store.add(_weighed(subject, one, case, inputs, effort.new_tokens, clock, encoder))
        progress(f"{one.label}, weighed", 1)
    revision = commit() if missing else None
    for number in missing:
        for place, one in enumerate(order(contestants, number)):
            taken = passed(subject, one, inputs, effort.new_tokens, clock).seconds
            seconds = {stage: round(value, DIGITS) for stage, value in taken.items()}
            store.add(Timed(*case, one.key, number, place, seconds, effort.new_tokens, _load(), revision))
            progress(one.label, 1)


def _weighed(
    subject: Subject,
    contestant: Contestant,
    case: Case,
    inputs: dict[str, Any],
    new_tokens: int,
    clock: Clock,
    encoder: Counts,
) -> Weighed:
    added = (None, None) if contestant.arm is None else added_by(subject, contestant.arm, inputs, encoder)
    gc.collect()
    with peak(subject.model.device) as found:
        done = passed(subject, contestant, inputs, new_tokens, clock)
    return Weighed(
        *case,
        contestant.key,
        memory=found.growth,
        kv_bytes=done.kv_bytes,
        prompt=done.prompt,
        tokens_per_layer=done.tokens_per_layer,
        attention=subject.attention,
        dtype=str(subject.model.dtype).removeprefix("torch."),
        decided=done.decided,
        operations=added[0],
        reads=added[1],
    )


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
