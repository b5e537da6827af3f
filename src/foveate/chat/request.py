"""One prompt on its way through a model: pruned, its drops hooked, and reported. Written once, for all who ask."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from foveate.budget import Budget
from foveate.errors import InvalidOption
from foveate.families import Family, family_of
from foveate.flow.check import check_method
from foveate.inside.dropping import Dropping, dropping
from foveate.inside.plan import check_drops
from foveate.methods import Compose, Inside, Method
from foveate.parts import Parts
from foveate.prune import prune_with_grad
from foveate.pruned import Pruned, Report
from foveate.settings import Settings

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedModel


class Asked:
    """A pruned prompt, with what the language model drops of it until `close`.

    Attributes:
        pruned: the prompt as it enters the language model.
        dropped: what is dropped inside; None where the method prunes the prompt alone.
    """

    def __init__(self, model: "PreTrainedModel", request: "Request", pruned: Pruned) -> None:
        self.pruned = pruned
        self._method = request.method
        self._open = ExitStack()
        block = dropping(model, request.family, pruned, request.parts.inside)
        self.dropped: Dropping | None = self._open.enter_context(block)

    @property
    def report(self) -> Report:
        """What became of the prompt, what the language model dropped included."""
        if self.dropped is None:
            return self.pruned.report
        return replace(self.pruned.report, method=self._method, tokens_per_layer=self.dropped.tokens_per_layer)

    @property
    def kept(self) -> list[Tensor]:
        """Per image, the indices of the tokens that the last layer works on."""
        return self.pruned.kept if self.dropped is None else self.dropped.kept_at_last

    def close(self) -> None:
        """Take the hooks off the language model; once is enough."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Request:
    """What is asked of a model for every prompt, checked once.

    Attributes:
        family: the model's.
        method: as the caller gave it.
        parts: the same, split into what prunes the prompt and what acts inside the language model.
        settings: the rest of what a prune is to do.
        sources: ``question``, ``processor``, ``clip`` and ``family``, as `prune` takes them.
    """

    family: Family
    method: "Method | Inside | Compose"
    parts: Parts
    settings: Settings
    sources: dict[str, Any] = field(repr=False)

    @classmethod
    def of(
        cls,
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
    ) -> Self:
        """A request of an unwrapped model.

        Raises:
            UnsupportedModel, InvalidBudget, InvalidOption: what no prompt could make right.
        """
        parts, known = Parts.of(method, keep, keep_total), family_of(model, family)
        check_method(model, known, parts.prompt)
        check_drops(model, known, parts.inside)
        if per_frame and parts.keeps_all:
            raise InvalidOption(f"per_frame=True with {method!r}: allowed with a method that prunes the prompt")
        settings = Settings(parts.budget, positions, per_frame)
        sources = {"question": question, "processor": processor, "clip": clip, "family": family}
        return cls(known, method, parts, settings, sources)

    @property
    def acts_inside(self) -> bool:
        """Whether the method drops inside the language model."""
        return bool(self.parts.inside)

    def ask(
        self,
        model: "PreTrainedModel",
        inputs: Mapping[str, Any],
        use_cache: bool | None = True,
        timed: bool = False,
    ) -> Asked:
        """Prune a prompt, and hook what its language model drops; gradients flow where the caller has them on.

        Args:
            model: unwrapped.
            inputs: as `prune`'s.
            use_cache: as `prune`'s; None for a plain forward.
            timed: as `prune`'s.

        Raises:
            FoveateError: as `prune`.
        """
        pruned = prune_with_grad(model, inputs, self.parts.prompt, self.settings, use_cache, timed, **self.sources)
        return Asked(model, self, pruned)
