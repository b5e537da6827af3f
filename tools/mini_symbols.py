"""What the language model of mini should see in a patch: the sum of the words for what the patch shows.

The language model first learns to answer from these sums, which needs no picture; then the projector learns
to make them of the tower's features, and both go on together.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from foveate.mini.phrases import noun
from foveate.mini.scenes import COLOURS, COLUMNS, GRID, LETTERS, SHAPES, SIZES
from mini_data import IGNORE, SIDE, SPAN, TARGETS

SIZE = list(TARGETS).index("size")  # the one attribute that always has a name
NOTHING = "<image>"  # stands for empty ground: its own embedding has no other use


class Symbols:
    """The words behind each class of `patch_labels`, and behind each cell."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, device: torch.device) -> None:
        def ids(words: list[str]) -> Tensor:
            found = tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
            if any(len(tokens) != 1 for tokens in found):
                raise ValueError(f"not one token each: {words}")
            return torch.tensor(found, device=device)[:, 0]

        self.words = [ids(list(values)) for values in (SHAPES, COLOURS, SIZES, LETTERS, ("thing",))]
        rows = range(1, GRID + 1)
        self.cells = ids([f"{column}{row}" for row in rows for column in COLUMNS])
        self.nothing = tokenizer.convert_tokens_to_ids(NOTHING)

        shapes = torch.stack([self.words[0], ids([noun(shape, plural=True) for shape in SHAPES])], dim=1)
        self.names = (shapes, self.words[1][:, None], self.words[3][:, None])
        self.vocabulary = torch.arange(len(tokenizer), device=device)

    def shuffle(self, images: int, rng: random.Random) -> Tensor:
        """[images, V]: the word for each word; in every image colours, shapes and letters trade names.

        No picture shows a pair that is held out, and a model that met every red thing but a circle takes red for a
        sign of no circle. Where names are shuffled, language gives no such rule away.
        """
        table = self.vocabulary.repeat(images, 1)
        for row in table:
            for names in self.names:
                row[names] = names[rng.sample(range(len(names)), len(names))]
        return table

    def goal(self, labels: Tensor, indices: Tensor, embedding: Tensor, names: Tensor | None = None) -> Tensor:
        """[B, n, D] sums of word embeddings; `labels` [B, n, 5], `indices` [B, n] into 576, `embedding` [V, D].

        A thing's words are its shape, colour, size and cell, near its middle its letter, and right there 'thing'.
        `names` [B, V] renames them.
        """
        names = self.vocabulary.expand(len(labels), -1) if names is None else names
        thing = labels[..., SIZE : SIZE + 1] > 0
        cells = indices // SIDE // SPAN * GRID + indices % SIDE // SPAN
        total = torch.where(thing, embedding[self.cells[cells]], embedding[self.nothing])
        for channel, words in enumerate(self.words):
            classes = labels[..., channel].long()
            word = names[:, words].gather(1, (classes - 1).clamp(min=0))
            total = total + embedding[word] * (classes > 0)[..., None]
        return total

    def loss(self, image: Tensor, labels: Tensor, indices: Tensor, embedding: Tensor) -> Tensor:
        """Mean squared distance of projected patches [B, n, D] from their goal, in units of the goal's variance.

        Things and ground weigh the same, however few patches things cover; rims of things have no goal. Of an
        attribute that is IGNOREd, it does not matter which of its words are in the sum.
        """
        embedding = embedding.detach()
        goal = self.goal(labels, indices, embedding)
        off = image - goal
        for channel, words in enumerate(self.words):
            span = torch.linalg.qr(embedding[words].T)[0]
            off = off - (labels[..., channel] == IGNORE)[..., None] * (off @ span @ span.T)
        away = off.square().sum(-1) / goal.var(dim=(0, 1)).sum()
        thing, ground = labels[..., SIZE] > 0, labels[..., SIZE] == 0
        middle = labels[..., 4] > 0
        return away[thing].mean() + away[middle].mean() + away[ground].mean()
