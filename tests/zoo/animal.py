"""What all families share: a vocabulary, the writing of prompts, the making of models."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, count

import torch
from torch import Tensor
from transformers import PreTrainedModel

# Specials, text, then what stands in and around pictures.
VOCABULARY = 160
PAD, BOS, NEWLINE, PARAGRAPH = range(4)
TEXT = range(4, 100)
IMAGE, VIDEO, AUDIO, START, END, BREAK, FAKE, GLOBAL, VIDEO_START, VIDEO_END = range(100, 110)
ROW_COLUMN = 110  # <row_1_col_1>, six columns to a row
PATCH = 4  # pixels: the edge of a patch, in every tower

LANGUAGE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": None,
}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "patch_size": PATCH,
}
EMBEDDINGS = 0.5  # small beside what attention adds, or the last word alone would decide the next


@dataclass(frozen=True)
class Picture:
    """An image or video: the tokens written for it, and the encoder's inputs, each with a leading dimension.

    ``places`` say of each of its pixels the grid (tile, frame), the row and the column of the token made of it,
    -1 where there is none: three tensors that broadcast to the pixels.
    """

    ids: list[int]
    tensors: dict[str, Tensor]
    places: tuple[Tensor, ...] = ()


def joined(rows):
    """All pictures' tensors one after another, smaller ones padded with zeros."""
    pictures = list(chain(*rows))
    return {name: concatenated([picture.tensors[name] for picture in pictures]) for name in pictures[0].tensors}


def concatenated(tensors):
    shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        pads = [(0, size - own) for size, own in zip(shape, tensor.shape[1:], strict=True)]
        padded.append(torch.nn.functional.pad(tensor, [*chain(*reversed(pads))]))
    return torch.cat(padded)


def padded(rows, side):
    """Rows of ids as ``input_ids`` and ``attention_mask``."""
    width = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        pad, real = [PAD] * (width - len(row)), [1] * len(row)
        ids.append(pad + row if side == "left" else row + pad)
        mask.append(pad + real if side == "left" else real + pad)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def squares(number, size, side):
    """Places in ``number`` grids of ``side`` x ``side`` tokens, each a picture of ``size`` x ``size`` pixels."""
    line = torch.arange(size) * side // size
    return torch.arange(number)[:, None, None, None], line[:, None], line


def modalities(ids, images_per_row, name="mm_token_type_ids"):
    return {name: (ids == IMAGE) * 1 + (ids == VIDEO) * 2}


@dataclass(frozen=True)
class Animal:
    """A family, and one kind of picture to show it.

    ``draw(index, alone, generator)`` makes the prompt's picture ``index``; ``alone``: its row has no other.
    ``mark(ids, images_per_row)`` are the inputs that follow from the prompt. Several pictures' ``placeholders``
    may stand in one run (PaliGemma), and one picture's in several (Pixtral's rows, Idefics3's tiles, Qwen3-VL's
    frames).
    """

    build: Callable[[], PreTrainedModel]
    draw: Callable[[int, bool, torch.Generator], Picture]
    collate: Callable[[list[list[Picture]]], dict[str, Tensor]] = joined
    mark: Callable[[Tensor, tuple[int, ...]], dict[str, Tensor]] = lambda ids, images_per_row: {}
    placeholders: tuple[int, ...] = (IMAGE,)
    pictures_first: bool = False

    def prompt(self, images_per_row=(1,), seed=0, side="left"):
        """What the family's processor returns for a batch with so many pictures in its rows."""
        generator = torch.Generator().manual_seed(seed)
        pictures = self.pictures(images_per_row, generator)
        rows = [self.row(row, index, generator) for index, row in enumerate(pictures)]
        text = padded(rows, side)
        return text | self.collate(pictures) | self.mark(text["input_ids"], images_per_row)

    def tokens(self, images_per_row=(1,)):
        """How many visual tokens each picture of that prompt has."""
        pictures = chain(*self.pictures(images_per_row, torch.Generator()))
        return [sum(token in self.placeholders for token in picture.ids) for picture in pictures]

    def pictures(self, images_per_row, generator):
        index = iter(range(sum(images_per_row)))
        return [[self.draw(next(index), count == 1, generator) for _ in range(count)] for count in images_per_row]

    def row(self, pictures, index, generator):
        lengths = [(7, 12, 5)[(part + index) % 3] for part in range(len(pictures) + 1)]
        parts = [torch.randint(TEXT.start, TEXT.stop, (n,), generator=generator).tolist() for n in lengths]
        if self.pictures_first:
            return [*chain(*(picture.ids for picture in pictures)), BOS, *parts[-1], NEWLINE]
        written = [picture.ids + part for picture, part in zip(pictures, parts[1:], strict=True)]
        return [BOS, *parts[0], *chain(*written)]


@dataclass(frozen=True)
class Mixed:
    """A family that takes images and videos in one prompt."""

    image: Animal
    video: Animal

    def prompt(self, rows=("iv",), seed=0, side="left"):
        """What the processor returns for a batch with these images (i) and videos (v) in its rows."""
        generator = torch.Generator().manual_seed(seed)
        pictures = self.pictures(rows, generator)
        written = [self.image.row([drawn for _, drawn in row], i, generator) for i, row in enumerate(pictures)]
        text = padded(written, side)
        images, videos = ([[drawn for own, drawn in row if own == kind] for row in pictures] for kind in "iv")
        marks = self.image.mark(text["input_ids"], tuple(map(len, images)))
        return text | self.image.collate(images) | self.video.collate(videos) | marks

    def tokens(self, rows=("iv",)):
        """How many visual tokens each image of that prompt has, then each video."""
        pictures = sorted(chain(*self.pictures(rows, torch.Generator())), key=lambda pair: pair[0])
        return [sum(token in (IMAGE, VIDEO) for token in picture.ids) for _, picture in pictures]

    def pictures(self, rows, generator):
        """Per row, pairs of i or v and what is drawn."""
        indices, drawers = {"i": count(), "v": count()}, {"i": self.image, "v": self.video}
        return [
            [(own, drawers[own].draw(next(indices[own]), row.count(own) == 1, generator)) for own in row]
            for row in rows
        ]


def born(kind, embeddings=EMBEDDINGS, **config):
    """A model whose weights have scale 1/sqrt(fan_in), so that logits differ; its answers never end.

    Embeddings of input and output are never tied: a tied model with random weights repeats its last word.
    """
    torch.manual_seed(0)
    model = kind(kind.config_class(tie_word_embeddings=False, **config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(std=1 / math.sqrt(parameter[0].numel()))
        model.get_input_embeddings().weight.normal_(std=embeddings)
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    model.generation_config.suppress_tokens = [IMAGE, VIDEO]  # stock raises when one is emitted without a cache
    return model


def noise(generator, *shape):
    return torch.randn(*shape, generator=generator)


def of_one_size(size, count, before, after, index, alone, generator):
    """Images of ``size`` pixels and ``count`` tokens, between fixed tokens."""
    pixels = noise(generator, 1, 3, size, size)
    places = squares(1, size, math.isqrt(count))
    return Picture([*before, *[IMAGE] * count, *after], {"pixel_values": pixels}, places)
