"""One question about one image, answered by several arms, with the seconds of each stage."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveate.bench.arm import Arm
from foveate.bench.checkpoint import check_length
from foveate.chat.request import Request
from foveate.families import View
from foveate.methods import Compose, Inside, Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Answer:
    """What one arm answered, and what it took.

    Attributes:
        tokens: visual tokens that went to the language model (to its last layer, where the method acts
            inside), and of how many.
        tokens_per_layer: visual tokens that each layer of the language model works on.
        prompt: prompt tokens that went to the language model, visual ones included.
        seconds: ``encode``, ``select`` (with text relevance), ``prefill`` (to the first new token),
            ``decode`` (the rest).
        decided: the method with its ``auto`` options decided.
        tagger: what found the question's nouns, where the method asked for them.
        views: what was kept, to be drawn.
    """

    arm: Arm
    text: str
    tokens: tuple[int, int]
    tokens_per_layer: list[int]
    prompt: int
    new_tokens: int
    seconds: dict[str, float]
    decided: Method | Inside | Compose
    tagger: str | None
    views: list[View] = field(repr=False)


def ask(
    model: "PreTrainedModel",
    processor: Any,
    inputs: Any,
    arms: Sequence[Arm],
    max_new_tokens: int,
    size: tuple[int, int],
    progress: Callable[[str], None] = lambda arm: None,
) -> Iterator[Answer]:
    """The answer of each arm about an image of ``size`` (width, height), greedy; of equal budgets the first's.

    Timed in one run, after a run of the same that is not timed: that one loads what is
    loaded once (taggers, CLIP, kernels).

    Raises:
        InvalidInputs: the prompt and its answer are longer than the model's positions.
    """
    check_length(model, inputs, max_new_tokens)
    inputs = inputs.to(model.device)
    done: set[tuple[str, int]] = set()
    total: int | None = None
    for arm in arms:
        if total is not None and (repr(arm.method), arm.budget.count(total)) in done:
            continue
        progress(arm.label)
        _answer(model, processor, inputs, arm, max_new_tokens, size)
        answer = _answer(model, processor, inputs, arm, max_new_tokens, size)
        total = answer.tokens[1]
        done.add((repr(arm.method), arm.budget.count(total)))
        yield answer


def as_answers(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """One entry per answer, in plain data."""
    return [
        {
            "method": answer.arm.name,
            "keep": answer.tokens[1] if answer.arm.keeps_all else answer.arm.budget.keep,
            "answer": answer.text,
            "visual_tokens": answer.tokens[0],
            "visual_tokens_before": answer.tokens[1],
            "prompt_tokens": answer.prompt,
            "new_tokens": answer.new_tokens,
            "tokens_per_layer": answer.tokens_per_layer,
            "decided": repr(answer.decided),
            "tagger": answer.tagger,
            "seconds": {stage: round(value, 6) for stage, value in answer.seconds.items()},
        }
        for answer in answers
    ]


@torch.inference_mode()
def _answer(
    model: "PreTrainedModel", processor: Any, inputs: Any, arm: Arm, max_new_tokens: int, size: tuple[int, int]
) -> Answer:
    request = Request.of(model, arm.method, keep=arm.budget, processor=processor)
    with request.ask(model, inputs, timed=True) as asked:
        watch = _Stopwatch()
        output = model.generate(**asked.pruned, max_new_tokens=max_new_tokens, do_sample=False, streamer=watch)
    pruned, report, kept = asked.pruned, asked.report, asked.kept[0]
    prefill, decode = watch.split()
    new = output[0, pruned["input_ids"].shape[1] :]
    stages = report.seconds
    return Answer(
        arm=arm,
        text=str(processor.decode(new, skip_special_tokens=True)).strip(),
        tokens=(len(kept), report.tokens_before[0]),
        tokens_per_layer=report.tokens_per_layer[0],
        prompt=report.prompt_after[0],
        new_tokens=len(new),
        seconds={
            "encode": stages["encode"],
            "select": stages["relevance"] + stages["select"] + stages["shrink"],
            "prefill": prefill,
            "decode": decode,
        },
        decided=report.method,
        tagger=report.tagger,
        views=pruned.views(0, size, kept),
    )


class _Stopwatch:
    """A streamer: generate() hands it the prompt first, then each new token, moved to the CPU."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._times: list[float] = []

    def put(self, value: Tensor) -> None:
        """Note the time: generate() hands over the prompt, then each new token."""
        self._times.append(time.perf_counter())

    def end(self) -> None:
        """generate() has no more to hand over."""

    def split(self) -> tuple[float, float]:
        """Seconds to the first new token, and from there to the last."""
        first = self._times[1]
        return first - self._start, self._times[-1] - first
