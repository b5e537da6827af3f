"""What a request asks for, and what is chosen of each of its images: text that travels with the image."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

import foveate
from foveate.budget import Budget
from foveate.errors import FoveateError, InvalidOption
from foveate.methods import INSIDE, METHODS, Merging, Method, Resizing
from foveate.methods.spec import parse_method
from foveate.text.question import is_unicode
from foveate.tokens import Signal

KEY = "foveate"  # in --hf-overrides and mm_processor_kwargs
FIELD = "foveate_choice"  # the name of the tensor by which a choice goes to the model
ALLOWED = ("method", "keep", "query")
LONGEST = 8192  # characters of a query; all image requests wait while one is read
# What the plugin can give a method: vLLM's towers return no attention, and hold no text half of CLIP.
SIGNALS = frozenset({Signal.QUESTION})


@dataclass(frozen=True)
class Request:
    """What is asked for, for all images of a request.

    Attributes:
        method: as on the command line of foveate, such as ``spare:beta=0.5``.
        keep: a count or a fraction, per image; None prunes nothing.
        query: the question, of at most 8,192 characters; None for the prompt's own.

    Raises:
        ValueError: a value that is not allowed.
    """

    method: str = "spare"
    keep: int | float | None = None
    query: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.method, str):
            raise ValueError(f"method={self.method!r}: allowed is text such as 'spare' or 'spare:beta=0.5'")
        if not (self.query is None or isinstance(self.query, str)):
            raise ValueError(f"query={self.query!r}: allowed is text, or null for the prompt's own question")
        if self.query is not None and len(self.query) > LONGEST:
            raise ValueError(f"query of {len(self.query)} characters: allowed are {LONGEST}")
        if self.query is not None and not is_unicode(self.query):
            raise ValueError(f"query={self.query!r}: allowed is text without lone surrogates")
        try:
            servable(self.method)
            if self.keep is not None:
                Budget(self.keep)
        except FoveateError as error:
            raise ValueError(str(error)) from error

    def told(self) -> str:
        """What is done by it, for a log."""
        if self.keep is None:
            return f"prunes on request alone (the default has no keep), by {self.method}"
        unit = "token(s) of each image" if isinstance(self.keep, int) else "of each image's tokens"
        return f"keeps {self.keep} {unit}, by {self.method}, where a request does not say otherwise"

    @classmethod
    def read(cls, written: object, default: "Request | None" = None) -> "Request":
        """The request that a mapping describes; what it leaves out is the default's.

        Raises:
            ValueError: anything else than a mapping of the allowed keys to allowed values.
        """
        if not isinstance(written, Mapping):
            raise ValueError(f"{KEY}={written!r}: allowed is an object with {', '.join(ALLOWED)}, or null")
        for name in written:
            if name not in ALLOWED:
                raise ValueError(f"{KEY}: {name!r} is unknown: allowed are {', '.join(ALLOWED)}")
        return replace(default or cls(), **written)


@dataclass(frozen=True)
class Choice:
    """What is chosen for one image: with its features, all that decides which tokens are kept.

    Attributes:
        method: as `Request.method`.
        keep: as `Request.keep`, not None.
        nouns: ids of the tokens of the question's nouns; empty for methods that read no text.
        hold: whether the image's last token must be kept: the prompt ends with it.
        version: foveate's, so that caches that servers share never mix two versions' tokens.
    """

    method: str
    keep: int | float
    nouns: tuple[int, ...] = ()
    hold: bool = False
    version: str = foveate.__version__

    def text(self) -> str:
        """The choice as text: equal choices, equal texts."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def parse(cls, text: str) -> "Choice":
        """The choice that `text` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "nouns": tuple(fields["nouns"])})

    @staticmethod
    def tensor(text: str) -> Tensor:
        """Bytes ``[n]`` uint8 of a choice's text: strings do not travel to vLLM's workers, floats are rounded."""
        return torch.tensor(list(text.encode()), dtype=torch.uint8)

    @classmethod
    def of_tensor(cls, tensor: Tensor) -> "Choice":
        """The choice that `tensor` wrote."""
        return cls.parse(bytes(tensor.tolist()).decode())

    def count(self, n: int, least: int = 0) -> int:
        """How many of ``n`` tokens to keep, of which ``least`` are always kept.

        Raises:
            InvalidBudget: fewer than that.
        """
        return Budget(self.keep).counts([n], [least])[0]


def refused(method: object) -> str | None:
    """Why a method cannot be served; None if it can."""
    if not isinstance(method, Method):
        return "it drops tokens inside the language model, and vLLM plans one cache for all layers"
    if isinstance(method, (Merging, Resizing)):
        return "it makes new tokens instead of selecting"
    if not method.countable:
        return "its count depends on what the image shows, and vLLM sizes the prompt before it encodes"
    if getattr(method, "faithful", False):
        return "faithful=True refuses some images once they are encoded, when a request can no longer be refused"
    missing = method.settled(SIGNALS).needs - SIGNALS
    if missing:
        return (
            f"it needs {', '.join(sorted(signal.value for signal in missing))}, which vLLM's encoder does not give"
        )
    return None


@lru_cache(maxsize=256)
def servable(text: str) -> Method:
    """The method that ``text`` describes, its ``auto`` options decided for what can be had here.

    Raises:
        InvalidOption: unknown, or one that cannot be served, and why.
    """
    method = parse_method(text)
    reason = refused(method)
    if reason is not None or not isinstance(method, Method):
        known = [name for name, kind in {**METHODS, **INSIDE}.items() if refused(kind()) is None]
        raise InvalidOption(f"method {text!r} cannot be served: {reason}; allowed are {', '.join(known)}")
    return method.settled(SIGNALS)
