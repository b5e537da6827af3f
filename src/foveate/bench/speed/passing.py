"""One pass from inputs to the last new token, by stock or by our path, with its seconds by stage.

Both are cut at the same points: where the decoder is entered first, where the first new token is out, the end.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foveate.bench.arm import Arm
from foveate.bench.speed.clock import Clock
from foveate.bench.speed.contestants import Contestant
from foveate.bench.speed.subject import Subject
from foveate.chat.request import Asked, Request
from foveate.hf import names

STAGES = ("encode", "select", "prefill", "decode")


@dataclass(frozen=True)
class Passed:
    """What a pass took, and left.

    Attributes:
        seconds: by stage. ``encode``: to the decoder, with generate()'s preparations and without ``select``,
            which is relevance, selection and shrinking; ``prefill``: from there to the first new token, with what
            a method does between the layers; ``decode``: the rest.
        prompt: columns of the prompt that went to the language model.
        tokens_per_layer: visual tokens of the first image, by layer.
        decided: what pruned, with its ``auto`` options decided; None for stock.
        cache: keys and values, at the end.
    """

    seconds: dict[str, float]
    prompt: int
    tokens_per_layer: list[int]
    decided: str | None
    cache: Any = field(repr=False)

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values over all layers, as they are stored."""
        stored = [part for layer in self.cache.layers for part in (layer.keys, layer.values)]
        return sum(part.numel() * part.element_size() for part in stored)


@torch.inference_mode()
def passed(
    subject: Subject, contestant: Contestant, inputs: dict[str, Any], new_tokens: int, clock: Clock
) -> Passed:
    """Greedy, exactly ``new_tokens`` long in every row."""
    model: Any = subject.model
    options = {
        "max_new_tokens": new_tokens,
        "min_new_tokens": new_tokens,
        "do_sample": False,
        "return_dict_in_generate": True,
    }
    depth, select, decided = model.config.get_text_config().num_hidden_layers, 0.0, None
    watch = _Watch(clock)
    with watch.entering(model.get_decoder()):
        start = clock.mark()
        if contestant.arm is None:
            output = model.generate(**inputs, **options, streamer=watch)
            end = clock.mark()  # at once: what is counted below would be taken for decoding
            prompt, layers = inputs["input_ids"].shape[1], [subject.visual_tokens(inputs)] * depth
        else:
            with pruned_by(subject, contestant.arm, inputs) as asked:
                output = model.generate(**asked.pruned, **options, streamer=watch)
            end = clock.mark()
            taken = asked.report.seconds
            select = taken["relevance"] + taken["select"] + taken["shrink"]
            decided = repr(asked.report.method)
            prompt = asked.pruned["input_ids"].shape[1]
            layers = asked.report.tokens_per_layer[0]
    entered, first = watch.points
    cuts = [clock.seconds(*pair) for pair in ((start, entered), (entered, first), (first, end))]
    seconds = dict(zip(STAGES, (cuts[0] - select, select, cuts[1], cuts[2]), strict=True))
    return Passed(seconds, prompt, list(layers), decided, names.returned_cache(output)[1])


def pruned_by(subject: Subject, arm: Arm, inputs: dict[str, Any]) -> Asked:
    """What an arm hands to ``generate``, with what it drops inside the language model until it is closed."""
    request = Request.of(
        subject.model,
        arm.method,
        keep=arm.budget,
        question=subject.question,
        processor=subject.processor,
        clip=subject.clip,
    )
    return request.ask(subject.model, inputs, timed=True)


class _Watch:
    """A streamer and a hook. generate() hands a streamer the prompt, then each new token, moved to the CPU."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entered: Any = None
        self._first: Any = None
        self._puts = 0

    @property
    def points(self) -> tuple[Any, Any]:
        """Marks at the decoder's first entry, and at the first new token."""
        return self._entered, self._first

    @contextmanager
    def entering(self, decoder: torch.nn.Module) -> Iterator[None]:
        """Watch the decoder inside the block."""

        def hook(module: torch.nn.Module, arguments: Any) -> None:
            if self._entered is None:
                self._entered = self._clock.mark()

        handle = decoder.register_forward_pre_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def put(self, value: Tensor) -> None:
        """Count what generate() hands over: the prompt, then each new token."""
        self._puts += 1
        if self._puts == 2:
            self._first = self._clock.mark()

    def end(self) -> None:
        """generate() has no more to hand over."""
