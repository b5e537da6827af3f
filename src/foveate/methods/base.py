"""What every method that prunes before the language model is: a frozen dataclass with `rank`."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from foveate.errors import InvalidOption
from foveate.select.engine import on_host_unless_told, without_autocast
from foveate.select.inputs import precise as precise
from foveate.tokens import Signal, VisualTokens


@dataclass(frozen=True)
class Method(ABC):
    """A rule that ranks the visual tokens of images. Its fields are its hyper-parameters.

    `rank` and `merge` run outside `torch.autocast`, in which they would keep other tokens, and make tensors on the
    host where they name no device.

    Attributes:
        source: where the method is from.
        acts: where tokens are dropped.
        complexity: of `rank`, in the letters of `foveate.tokens`.
        nested: whether the first k' tokens of a ranking for k are the ranking for k', so that one ranking
            serves all smaller budgets. A promise: it is checked for the methods of the table.
        countable: whether N and k alone say how many tokens are kept, whatever they hold: what an engine
            must know that plans a prompt before its images are encoded.
    """

    source: ClassVar[str]
    acts: ClassVar[str] = "before the language model"
    complexity: ClassVar[str]
    nested: ClassVar[bool] = False
    countable: ClassVar[bool] = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ("rank", "merge"):  # here, so that no method can forget it
            if name in vars(cls):
                setattr(cls, name, on_host_unless_told(without_autocast(vars(cls)[name])))

    def __post_init__(self) -> None:  # noqa: B027 - most have nothing to check
        """Check the options.

        Raises:
            InvalidOption: a hyper-parameter that is not allowed.
        """

    @property
    def needs(self) -> frozenset[Signal]:
        """The signals it is computed with: a missing one raises before any work, no other is collected.

        An option left at ``auto`` counts as its most modest choice.
        """
        return frozenset()

    @property
    def wants(self) -> frozenset[Signal]:
        """The signals its ``auto`` options turn to where they are to be had."""
        return self.settled(frozenset(Signal)).needs - self.needs

    def settled(self, available: frozenset[Signal]) -> Self:
        """The method with its ``auto`` options decided, given the signals that are to be had."""
        return self

    @abstractmethod
    def rank(self, tokens: VisualTokens, k: int) -> Tensor:
        """The ``k`` tokens to keep, ``[..., k]`` distinct int64 indices in order of selection, best first.

        Args:
            tokens: one image, ``features [N, D]``, or a group of them, ``[G, N, D]``.
            k: how many of each image, ``1 <= k <= N``.
        """


@dataclass(frozen=True)
class EachImage(Method):
    """A method that thinks of one image at a time; those of a group are ranked one after the other."""

    def rank(self, tokens: VisualTokens, k: int) -> Tensor:
        """``[..., k]``: `rank_one` of each image.

        Raises:
            InvalidOption: a method of one's own gave no tensor, or tensors of different shapes.
        """
        if tokens.features.dim() == 2:
            return self.rank_one(tokens, k)
        orders: list[Any] = [self.rank_one(image, k) for image in tokens.each()]
        given = [list(order.shape) if isinstance(order, Tensor) else type(order).__name__ for order in orders]
        if not isinstance(orders[0], Tensor) or given.count(given[0]) < len(given):
            shown = " and ".join(dict.fromkeys(map(str, given)))
            raise InvalidOption(
                f"{type(self).__name__}.rank_one gave {shown} for k={k}: allowed are [k] distinct int64 indices"
            )
        return torch.stack(orders)

    @abstractmethod
    def rank_one(self, tokens: VisualTokens, k: int) -> Tensor:
        """What `rank` gives of one image, ``[k]``.

        Args:
            tokens: one image, ``features [N, D]``.
            k: how many, ``1 <= k <= N``.
        """


def top(scores: Tensor, k: int) -> Tensor:
    """Indices ``[..., k]`` of the largest of ``scores [..., N]``, best first, ties to the lowest index."""
    return torch.argsort(scores, dim=-1, descending=True, stable=True)[..., :k]


def with_last(order: Tensor, n: int) -> Tensor:
    """``order [..., k]``, whose last choice gives way to token ``n - 1`` where that is not chosen."""
    held = (order == n - 1).any(dim=-1, keepdim=True)
    return torch.cat([order[..., :-1], torch.where(held, order[..., -1:], n - 1)], dim=-1)


def laid(places: Tensor, tokens: VisualTokens) -> Tensor:
    """``places [k]`` that the host worked out, where the tokens lie: ``[..., k]``, the same for each image."""
    device = tokens.features.device
    return places.to(device, non_blocking=True).expand(*tokens.features.shape[:-2], -1)


def widest(values: Tensor) -> Tensor:
    """``values`` in float64; in float32 on Apple's GPUs, which have no more."""
    return values.float() if values.device.type == "mps" else values.double()


def one_of(name: str, value: object, allowed: Iterable[object]) -> None:
    """Check an option.

    Raises:
        InvalidOption: ``value`` is not among the allowed ones.
    """
    choices = list(allowed)
    if value not in choices:
        raise InvalidOption(f"{name}={value!r}: allowed are {', '.join(map(repr, choices))}")


def at_least_zero(name: str, value: float, otherwise: str = "") -> None:
    """Check a number.

    Args:
        name: of the option.
        value: its value.
        otherwise: a word that is allowed as well, for the message.

    Raises:
        InvalidOption: ``value`` is not a finite number of 0 or more.
    """
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value < float("inf"):
        words = f", or {otherwise!r}" if otherwise else ""
        raise InvalidOption(f"{name}={value!r}: allowed is a finite number of 0 or more{words}")


def cosine_above_zero(name: str, value: float) -> None:
    """Check a number.

    Raises:
        InvalidOption: ``value`` is not a number above 0, and 1 at most.
    """
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 < value <= 1:
        raise InvalidOption(f"{name}={value!r}: allowed is a number above 0, and 1 at most")


def layer_index(name: str, value: int, least: int = 1, depth: int | None = None) -> None:
    """Check the index of a decoder layer.

    Raises:
        InvalidOption: ``value`` is not an int of ``least`` or more, or not below ``depth``.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least or (depth is not None and value >= depth):
        limit = f"{least} or more" if depth is None else f"{least} to {depth - 1}, this language model's"
        raise InvalidOption(f"{name}={value!r}: allowed are layers {limit}")


def layer_indices(name: str, values: object, least: int = 1) -> tuple[int, ...]:
    """Several indices of decoder layers, as a tuple.

    Raises:
        InvalidOption: anything else, or an int below ``least``.
    """
    if not isinstance(values, (tuple, list)):
        raise InvalidOption(f"{name}={values!r}: allowed are ascending layer indices such as (8, 16, 24), or None")
    for value in values:
        layer_index(name, value, least)
    return tuple(values)
