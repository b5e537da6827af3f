"""DART: a few pivots, and the tokens least like them."""

from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar

import torch
from torch import Tensor

from foveate.errors import InvalidBudget, InvalidOption
from foveate.methods.base import Method, precise, top
from foveate.select import select_unlike
from foveate.select.inputs import check_count
from foveate.tokens import Signal, VisualTokens


@dataclass(frozen=True)
class DART(Method):
    """Embedding variant: pivots are the largest L1 norms; each adds the tokens least like it, by cosine.

    The authors' runs inside the language model, on keys and states of a layer; here both are the embeddings
    that the language model would read.

    Attributes:
        image_pivots: how many of the image's tokens are pivots, and kept; 1 or more.
        text_pivots: how many of the question's nouns' embeddings are pivots, too; 0 or more.
        faithful: the authors' counts and order of pivots, refusing other counts.

    Raises:
        InvalidOption: an option outside the above.
        InvalidBudget: ``rank``, where ``faithful`` refuses a k that is not the pivots and as many for each.

    Source: arXiv 2502.11494; checked against the port in LightCompress.
    Differs: embeddings for keys and states; no text pivots unless asked for, 8 of the image where the authors
        take 4 and 4. Without ``faithful``: exactly k, the first pivots taking one more where k does not divide;
        pivots come by falling norm, where theirs come in the iteration order of a Python set; zero
        rows come last.
    """

    source: ClassVar[str] = "arXiv 2502.11494"
    complexity: ClassVar[str] = "O(p N D) for p pivots"

    image_pivots: int = 8
    text_pivots: int = 0
    faithful: bool = False

    def __post_init__(self) -> None:
        for name, least in (("image_pivots", 1), ("text_pivots", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
                raise InvalidOption(f"{name}={value!r}: allowed is an int of {least} or more")

    @property
    def needs(self) -> frozenset[Signal]:
        """See `Method.needs`."""
        return frozenset({Signal.QUESTION} if self.text_pivots else set())

    def rank(self, tokens: VisualTokens, k: int) -> Tensor:
        """See `Method.rank`."""
        states = precise(tokens.features)
        n = len(states)
        check_count(k, n)
        if self.text_pivots:
            states = torch.cat([states, tokens.signal(Signal.QUESTION).to(states)])
        return self.retained(states, states, slice(0, n), k)

    def retained(self, keys: Tensor, states: Tensor, image: slice, k: int) -> Tensor:
        """``[k]`` positions of image tokens to keep: the pivots, then what each takes.

        Args:
            keys: ``[L, Dk]`` of a sequence, heads side by side: their L1 norms choose the pivots.
            states: ``[L, D]``, whose cosines are compared.
            image: the image's positions; text pivots are sought after them.
            k: how many.
        """
        norms = precise(keys).abs().sum(dim=1)
        own = top(norms[image], min(self.image_pivots, k)) + image.start
        text = top(norms[image.stop :], self.text_pivots) + image.stop
        pivots = torch.cat([own, text])
        if self.faithful:  # the authors' loop runs over a set
            pivots = torch.tensor(list(set(pivots.tolist())), device=pivots.device)
        free = torch.zeros(len(states), dtype=torch.bool, device=states.device)
        free[image] = True
        free[own] = False
        return torch.cat([own, *select_unlike(states, pivots, free, self._counts(k, len(own), len(pivots)))])

    def _counts(self, k: int, kept: int, pivots: int) -> list[int]:
        each, more = divmod(k - kept, pivots)
        if self.faithful and (more or kept < self.image_pivots):
            raise InvalidBudget(
                f"k={k}: allowed with faithful=True are {self.image_pivots} and multiples of {pivots} more"
            )
        return [each + (index < more) for index in range(pivots)]
