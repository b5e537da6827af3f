"""One image's or video's visual tokens, and the signals that methods may ask for.

Shape letters, used everywhere:
    B  batch (rows of a prompt)        N  visual tokens of one image
    L  prompt length                   k  tokens kept
    D  width of a token                M  tokens of the question
    G  images ranked together
"""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from torch import Tensor

from foveate.errors import MissingSignal


class Signal(Enum):
    """An optional input of a method. The value is the field of `VisualTokens` that holds it."""

    CLS_ATTENTION = "cls_attention"
    RECEIVED_ATTENTION = "received_attention"
    QUESTION = "question"
    CLIP_RELEVANCE = "clip_relevance"
    PATCHES = "patches"
    KEYS = "keys"
    JOINT_ATTENTION = "joint_attention"


# The fields with one entry per token.
PER_TOKEN = (
    *("features", "cls_attention", "received_attention", "clip_relevance"),
    *("patches", "keys", "joint_attention"),
)
TENSORS = (*PER_TOKEN, "question", "asked")


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """The visual tokens of an image or video, or of a group of them, as the language model would see them.

    Shapes are those of one image; of a group, every tensor has a leading axis ``G`` more. The images of a group
    have equal grids.

    Attributes:
        features: ``[N, D]`` after the projector, in prompt order.
        grids: ``(height, width)`` in tokens of each tile or frame; the tokens that are not locked are these
            grids one after the other, each in raster order.
        family: ``config.model_type`` of the model; papers tie some defaults to it.
        cls_attention: ``[N]`` attention of the vision tower's CLS query, mean over heads, or None.
        received_attention: ``[N]`` attention that the vision tower's patches pay to each, mean over heads and
            queries (and over the patches that a token is made of), or None.
        question: ``[M, D]`` input embeddings of the question's nouns (M may be 0), padded to the longest of a
            group with any finite numbers, or None.
        asked: ``[M]`` bool, which of these are the question's; None for all.
        clip_relevance: ``[N]`` cosine of projected CLIP patch and question embeddings (empty, or the same number
            everywhere, without a question), or None.
        patches: ``[N, Dv]`` states of the vision tower that the projector reads, or None.
        keys: ``[N, heads, d]`` keys of the tower's layer that attention is read from, as its attention function is
            handed them, norms and rotations included (mean over the patches that a token is made of), or None.
        joint_attention: ``[N]`` attention of the tower's CLS query over the channels of all heads at once, as
            one head of that width, or None.
    """

    features: Tensor
    grids: tuple[tuple[int, int], ...]
    family: str = ""
    cls_attention: Tensor | None = None
    received_attention: Tensor | None = None
    question: Tensor | None = None
    clip_relevance: Tensor | None = None
    patches: Tensor | None = None
    keys: Tensor | None = None
    joint_attention: Tensor | None = None
    asked: Tensor | None = None

    def signal(self, signal: Signal) -> Tensor:
        """The tensor of a signal.

        Raises:
            MissingSignal: it was not collected.
        """
        value: Tensor | None = getattr(self, signal.value)
        if value is None:
            present = ", ".join(sorted(s.value for s in self.signals)) or "no optional signal"
            raise MissingSignal(f"these tokens carry no {signal.value}; they have {present}")
        return value

    @property
    def signals(self) -> frozenset[Signal]:
        """The signals that were collected."""
        return frozenset(signal for signal in Signal if getattr(self, signal.value) is not None)

    def with_only(self, signals: frozenset[Signal]) -> "VisualTokens":
        """The same images, their other optional signals left out."""
        absent: dict[str, Any] = {signal.value: None for signal in self.signals - signals}
        return replace(self, **absent)

    def each(self) -> "list[VisualTokens]":
        """The images of a group one by one, each with its question as long as it is; one image by itself.

        Questions of several lengths are cut by one read of ``asked``.
        """
        if self.features.dim() == 2:
            return [self]
        present = {name: value for name in TENSORS if (value := getattr(self, name)) is not None}
        asked = None if self.question is None or self.asked is None else self.asked.tolist()
        images = []
        for number in range(len(self.features)):
            parts = {name: value[number] for name, value in present.items()}
            if asked is not None:
                words = [place for place, real in enumerate(asked[number]) if real]
                parts |= {"question": parts["question"][words], "asked": None}
            images.append(replace(self, **parts))
        return images
