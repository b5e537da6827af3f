"""Agreement of projected patches and word embeddings, the language model's first lesson."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from foveate.mini.phrases import noun
from foveate.mini.scenes import COLOURS, LETTERS, SHAPES, SIZES
from mini_data import SIDE, SPAN


class Lexicon:
    """The words for what a patch shows: its size, colour, shape and letter, and the row and column of its cell."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        def ids(words: list[str]) -> Tensor:
            return torch.tensor([tokenizer(word, add_special_tokens=False)["input_ids"] for word in words])[:, 0]

        self.shown = {
            0: [ids([f" {shape}" for shape in SHAPES]), ids([f" {noun(shape, plural=True)}" for shape in SHAPES])],
            1: [ids([f" {colour}" for colour in COLOURS])],
            2: [ids([f" {size}" for size in SIZES])],
            3: [ids([f" {letter}" for letter in LETTERS])],
        }
        self.rows, self.columns = ids(list("123456")), ids([f" {column}" for column in "abcdef"])

    def loss(self, image: Tensor, labels: Tensor, indices: Tensor, embedding: Tensor) -> Tensor:
        """How far projected patches [B, n, D] are, by cosine, from the words for what they show.

        `labels` [B, n, 5] as of `patch_labels`, `indices` [B, n] into 576, `embedding` [vocabulary, D].
        """
        words = functional.normalize(embedding, dim=-1)
        scores = 10 * functional.normalize(image, dim=-1) @ words.T
        thing, ground = labels[..., 1] > 0, labels[..., 1] == 0
        rows, columns = scores[..., self.rows.to(scores.device)], scores[..., self.columns.to(scores.device)]
        total = functional.cross_entropy(rows[thing], (indices // SIDE // SPAN)[thing])
        total = total + functional.cross_entropy(columns[thing], (indices % SIDE // SPAN)[thing])
        # Empty ground names no place: attention that spreads over it then does not blur the place of a thing.
        total = total + (rows[ground].square().mean() + columns[ground].square().mean())
        for channel, groups in self.shown.items():
            shown = labels[..., channel] > 0
            for group in groups:
                read = scores[shown][:, group.to(scores.device)]
                total = total + functional.cross_entropy(read, labels[..., channel][shown].long() - 1)
        return total
