"""Methods of a third kind: they drop visual tokens between two layers of the language model."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.errors import InvalidOption
from foveate.tokens import Signal


@dataclass(frozen=True)
class Stage:
    """One drop.

    Attributes:
        layer: index of the first decoder layer that does without the tokens dropped.
        hears: index of the layer whose attention ranks them: ``layer`` itself or one before.
        count: how many tokens of an image it does with.
    """

    layer: int
    hears: int
    count: int


@dataclass(frozen=True)
class Recycled:
    """Dropped tokens that stay after all, standing for others.

    Attributes:
        places: ``[c]`` indices into the tokens dropped.
        states: ``[c, D]``, what stands there.
    """

    places: Tensor
    states: Tensor


@dataclass(frozen=True)
class Inside(ABC):
    """A rule that drops visual tokens by what text tokens attend to, while the language model reads the prompt.

    Its fields are its hyper-parameters. A token's score is the attention that raters pay to it in one layer,
    mean over heads and raters. With `foveate.attach` alone: a prompt cannot carry it.

    Attributes:
        source: where the method is from.
        acts: where tokens are dropped.
        complexity: of the scores, beside the keys of one layer once more for each drop.
        nested: whether what is kept of k' < k tokens is among what is kept of k.
        countable: never: an engine that plans a prompt's memory cannot shorten some layers' caches.
    """

    source: ClassVar[str]
    acts: ClassVar[str] = "inside the language model"
    complexity: ClassVar[str]
    nested: ClassVar[bool] = False
    countable: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[Signal]:
        """None: what it needs arises in the language model."""
        return frozenset()

    @property
    def wants(self) -> frozenset[Signal]:
        """None likewise."""
        return frozenset()

    @abstractmethod
    def places(self, depth: int) -> tuple[tuple[int, int], ...]:
        """Its drops in a language model of ``depth`` layers: ``(layer, hears)`` of each, as of `Stage`, ascending.

        Raises:
            InvalidOption: there is no such layer.
        """

    @abstractmethod
    def counts(self, n: int, k: int, drops: int) -> list[int]:
        """How many tokens of an image of ``n`` each of its ``drops`` leaves, for a budget of ``k``.

        Raises:
            InvalidBudget: it cannot serve the budget.
        """

    def stages(self, depth: int, n: int, k: int) -> tuple[Stage, ...]:
        """`places` and `counts` together. Of drops that fall together, in shallow models, the last one counts.

        Raises:
            InvalidOption, InvalidBudget: as these, and for drops that no language model could make.
        """
        places = self.places(depth)
        counts = self.counts(n, k, len(places))
        last = {layer: Stage(layer, hears, count) for (layer, hears), count in zip(places, counts, strict=True)}
        for stage in last.values():
            if (
                not 1 <= stage.layer < depth
                or stage.hears not in (stage.layer - 1, stage.layer)
                or stage.count < 1
            ):
                raise InvalidOption(
                    f"{self!r} asks for {stage}: allowed are layers 1 to {depth - 1}, the attention of the layer "
                    "itself or of the one before, and one token or more"
                )
        return tuple(last.values())

    def raters(self, visual: Tensor, text: Tensor) -> Tensor | None:
        """``[G, M]`` bool: which text tokens rate, one at least; None for the prompt's last token alone.

        Args:
            visual: ``[G, N, D]``, the visual tokens of ``G`` rows as they enter the language model.
            text: ``[G, M, D]``, the text behind each row's last image likewise.
        """
        return None

    def recycled(self, dropped: int) -> int:
        """How many of an image's ``dropped`` tokens stay after all: what `recycle` gives."""
        return 0

    def recycle(self, dropped: Tensor, scores: Tensor) -> Recycled | None:
        """What becomes of an image's dropped tokens; None where they are gone.

        Args:
            dropped: ``[n, D]`` states between the layers, best first.
            scores: ``[n]``, descending.
        """
        return None
