"""attach(): prune every image a model is given, inside a with block or between start() and stop()."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from foveate.budget import Budget
from foveate.chat.generating import INSTALLED, generate
from foveate.chat.request import Asked, Request
from foveate.errors import InvalidOption
from foveate.hf.unwrap import unwrap
from foveate.inside.dropping import Dropping
from foveate.methods import Compose, Inside, Method
from foveate.pruned import Pruned

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedModel


class Attached:
    """What `attach` returns: a with block, or `start` and `stop`.

    Attributes:
        request: what is asked of the model for every prompt.
        last: the newest `Pruned`, from whichever thread; None before the first prompt with images.
        dropped: what its language model dropped, where the method acts there.
    """

    def __init__(self, model: "PreTrainedModel", request: Request) -> None:
        self.request = request
        self.last: Pruned | None = None
        self.dropped: Dropping | None = None
        self._model = model
        self._started = self._running = self._entered = False

    @property
    def method(self) -> "Method | Inside | Compose":
        """The method, as `attach` was given it."""
        return self.request.method

    def start(self) -> Self:
        """Prune from now on, until `stop`; nothing changes where it does already. Returns itself."""
        if not self._running:
            INSTALLED.enter(self._model, self, generate)
            self._started = self._running = True
        return self

    def stop(self) -> None:
        """Prune no more; nothing changes where it does not. The last one on a model restores it exactly."""
        if self._running:
            self._running = False
            INSTALLED.leave(self._model, self)

    def record(self, asked: Asked) -> None:
        """Remember what became of a prompt, without its gradients."""
        self.last = replace(asked.pruned.detached(), report=asked.report)
        self.dropped = asked.dropped

    def __enter__(self) -> Self:
        if self._entered:
            raise InvalidOption("an attach block entered twice: allowed is once at a time, or another attach()")
        self._entered = True
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered = False
        self.stop()

    def __repr__(self) -> str:
        state = "running" if self._running else "stopped" if self._started else "not started"
        return f"<Attached {self.method!r}, {state}>"

    def __del__(self) -> None:
        if not self._started:
            warnings.warn(
                f"attach(..., {self.method!r}) pruned nothing: use it in a with block, or call its start()",
                UserWarning,
                stacklevel=2,
            )


def attach(
    model: "PreTrainedModel",
    method: "Method | Inside | Compose",
    *,
    keep: int | float | Budget | Sequence[int | float | Budget | None] | None = None,
    keep_total: int | float | Sequence[int | float | None] | None = None,
    positions: str = "original",
    per_frame: bool = False,
    question: str | Sequence[str] | None = None,
    processor: Any = None,
    clip: "CLIPModel | str | Path | None" = None,
    family: str | None = None,
) -> Attached:
    """Prune whatever images reach ``model.generate`` or ``model(...)`` inside a with block.

    ::

        with foveate.attach(model, foveate.SPARE(), keep=64) as attached:
            model.generate(**inputs)

        attached = foveate.attach(model, foveate.SPARE(), keep=64).start()  # servers and trainers
        ...
        attached.stop()

    ``generate`` returns the full prompt followed by the new tokens, so ``output[:, prompt_length:]``
    stays right, and ``max_length`` and ``min_length`` count as if nothing had been pruned. A plain
    forward returns logits of the pruned prompt; ``Attached.last.kept`` tells which tokens are left.
    Attentions, hidden states and caches are in pruned coordinates as well. Streamers, stopping criteria and
    processors of logits that are passed see the full prompt.

    A cache knows what it holds, and so do its copies. Inside a block, of this model or another attached one, it
    can be passed on for the next turn or step. generate() then takes a text with the whole conversation's ids, as
    of stock; ``model(...)`` takes the new ids, and finds their positions. Outside any block a model takes such a
    cache for an unpruned one, and its positions are wrong: see `continued`, also for a turn with new images (not
    after methods inside the language model).

    Blocks nest: the newest one rules, for all threads. The last one to close restores the model exactly.

    Args:
        model: the model instance to attach to; its class and other instances are untouched.
        method: as `prune`'s, like all that follow; or one that acts inside the language model, such as
            `foveate.FastV()`; or a `foveate.Compose` of both kinds.
        keep: per image or video, a count or a fraction; of a Compose, one for each of its parts.
        keep_total: instead, for all of a row together.
        positions: ``original`` or ``compact``.
        per_frame: whether each frame of a video is ranked by itself.
        question: the question, or one per row.
        processor: the processor or tokenizer.
        clip: CLIP pair of the vision tower.
        family: None or ``generic``.

    Returns:
        An `Attached`, which does nothing before its with block or its ``start()``. Its ``last`` is the newest
        `Pruned`.

    Raises:
        UnsupportedModel, InvalidBudget, InvalidOption: at once. The errors of `prune`: when called.
    """
    inner = unwrap(model)
    request = Request.of(
        inner,
        method,
        keep=keep,
        keep_total=keep_total,
        positions=positions,
        per_frame=per_frame,
        question=question,
        processor=processor,
        clip=clip,
        family=family,
    )
    return Attached(inner, request)
