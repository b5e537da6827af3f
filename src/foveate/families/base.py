"""What a model family must tell; all else is the same for every family."""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from foveate.errors import InvalidInputs
from foveate.families.layout import Grid, Layout, View, square
from foveate.hf import names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Inputs = dict[str, Any]
IMAGE, VIDEO = "image", "video"
# The processor's name for the pixels of each kind, and generate()'s for the kinds themselves.
PIXELS = {IMAGE: "pixel_values", VIDEO: "pixel_values_videos"}
# What becomes of a smaller image: the tower takes it as it is, or one of the size that it wants.
AS_IT_IS, DOWN_AND_UP = "encoded as it is", "resized down and up"


class Family:
    """The facts in which one ``config.model_type`` differs from the others; here, the common case.

    An image is what a user calls so, with all its tiles; a video is one with all its frames. ``kind`` is
    ``image`` or ``video`` throughout, and ``prompt`` the processor's output.

    Attributes:
        name: for people.
        towers: the vision towers (their ``model_type``) this family is proven with; empty for any.
        kinds: what it takes.
        since: the first version of transformers that takes its pruned prompts.
        requires: by kind, inputs without which the encoder runs but the tokens' places are unknown.
        told_by: further inputs whose values say where tokens lie.
        tokens: how the tokens of an image lie, for people.
        locks: what is locked, for people.
        drops_inside: whether tokens can be dropped between layers: the language model reads left to right.
        grid_names: what the grids of an image are, in order.
        resizes: what becomes of a smaller image, `AS_IT_IS` or `DOWN_AND_UP`; None where pixels are unknown.
    """

    name: ClassVar[str]
    towers: ClassVar[tuple[str, ...]] = ()
    kinds: ClassVar[tuple[str, ...]] = (IMAGE,)
    since: ClassVar[str] = "5.18.0"
    requires: ClassVar[dict[str, tuple[str, ...]]] = {}
    told_by: ClassVar[tuple[str, ...]] = ()
    tokens: ClassVar[str]
    locks: ClassVar[str] = "nothing"
    drops_inside: ClassVar[bool] = True
    grid_names: ClassVar[tuple[str, ...]] = ("image", "tiles")
    resizes: ClassVar[str | None] = DOWN_AND_UP

    def counts(self, model: "PreTrainedModel", prompt: Inputs, kind: str, entries: Sequence[int]) -> list[int]:
        """Tokens of each image, given those of each entry that the encoder returns: one entry per image."""
        return list(entries)

    def layouts(self, model: "PreTrainedModel", prompt: Inputs, kind: str, sizes: Sequence[int]) -> list[Layout]:
        """The layout of every image, which have ``sizes`` tokens."""
        return [Layout.of(square(n)) for n in sizes]

    def views(self, kind: str, grids: Sequence[Grid], kept: Sequence[Tensor], aspect: float) -> list[View]:
        """What to draw: grids that cover a whole picture each, of an image of ``aspect`` (width / height).

        Here: each frame of a video; of an image, a grid of the whole and a finer one of its tiles.
        """
        words = self.grid_names if kind == IMAGE else tuple(f"frame {number + 1}" for number in range(len(grids)))
        return [View(*view) for view in zip(words, grids, kept, strict=False)]

    def positions(self, model: "PreTrainedModel", prompt: Inputs) -> Tensor | None:
        """``[axes, B, L]`` position ids of the unpruned prompt; None where they count attended columns.

        The model's own, where it has several axes (``get_rope_index``).

        Raises:
            InvalidInputs: what the model needs for them is missing, or it finds none.
        """
        own = names.rope_index(model)
        if own is None:
            return None
        parameters = inspect.signature(own).parameters.values()
        given = {p.name: prompt[p.name] for p in parameters if prompt.get(p.name) is not None}
        for parameter in parameters:
            required = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
            if required and parameter.name not in given:
                raise InvalidInputs(f"{parameter.name} is missing: pass all that the processor returned")
        try:
            found: Tensor = own(**given)[0]
        except (ValueError, TypeError, IndexError, RuntimeError) as error:  # such as a row of padding alone
            raise InvalidInputs(f"{self.name} finds no positions for this prompt: {error}") from error
        return found

    def attention(self, model: "PreTrainedModel", kind: str) -> nn.Module | None:
        """The attention module of the tower's layer whose output the projector reads; None where unknown."""
        layer = self.tower_layer(model)
        return None if layer is None else names.tower_attention(model, layer)

    def tower_layer(self, model: "PreTrainedModel") -> int | None:
        """The index of that layer among the tower's; None where this family does not say."""
        return -1

    def has_cls(self, model: "PreTrainedModel") -> bool:
        """Whether the tower's first patch is a CLS token."""
        return False

    def carry(
        self, model: "PreTrainedModel", prompt: Inputs, kind: str, scores: Tensor, lengths: Sequence[int]
    ) -> Tensor:
        """Scores of the tower's patches, carried to the tokens: the mean over the patches of a token.

        Args:
            model: the model.
            prompt: with its sizes on the host.
            kind: ``image`` or ``video``.
            scores: ``[P, ...]``, of all sequences that the tower attended over, one after another.
            lengths: of these sequences.

        Returns:
            ``[T, ...]``, the tokens of all images that are not locked, one after another.
        """
        patches = self.patches_of_tokens(model, prompt, kind, lengths)
        if patches is None:
            return scores
        found = scores[patches.to(scores.device)]
        return found[:, 0] if patches.shape[1] == 1 else found.mean(dim=1)

    def patches_of_tokens(
        self, model: "PreTrainedModel", prompt: Inputs, kind: str, lengths: Sequence[int]
    ) -> Tensor | None:
        """``[T, m]``: the tower's patches that each token is made of; None where each is a token."""
        return None

    def projector(self, model: "PreTrainedModel") -> nn.Module | None:
        """The module that takes the patch states ``[images, N, Dv]``, one per token; None where none does."""
        return None

    def pictures(self, model: "PreTrainedModel", prompt: Inputs, kind: str) -> list[Tensor]:
        """``[C, H, W]``, what each grid is made of, tiles joined, for all images one after another.

        Here: pixels of shape ``[..., C, H, W]``. ``C`` counts all frames that a time step is made of.
        """
        return list(prompt[PIXELS[kind]].flatten(0, -4))

    def with_pictures(
        self, model: "PreTrainedModel", prompt: Inputs, kind: str, pictures: Sequence[Tensor]
    ) -> Inputs:
        """The arguments of the encoder in which ``pictures`` take the place of its own (`pictures`).

        Of `AS_IT_IS` families: any number, all of one size, each an image to the encoder, which may be given more
        after them. Else: all of the prompt's, of their own sizes.
        """
        return {PIXELS[kind]: torch.stack(list(pictures)).reshape_as(prompt[PIXELS[kind]])}


def base_of(model: "PreTrainedModel") -> Any:
    """The model without its head: where the encoders and the state of positions are."""
    return cast(Any, model.base_model)
