"""Stage 1 of mini: a CLIP pair from scratch, by captions of crops and dense labels of patches."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from foveate.mini.phrases import Description, caption, describe
from foveate.mini.scenes import CELL, GRID, Scene
from mini_data import IGNORE, PATCH, SIDE, SPAN, TARGETS, class_of
from mini_stage import Stage, Step

MEAN, STD = 0.5, 0.25
WIDTH = 128


def clip_config(vocabulary: int, bos: int, eos: int, pad: int) -> CLIPConfig:
    """The pair's shape: a 4-layer tower over 24 x 24 patches, a 2-layer text tower."""
    shared = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4, "hidden_act": "gelu"}
    return CLIPConfig(
        projection_dim=WIDTH,
        vision_config={
            **shared,
            "num_hidden_layers": 4,
            "image_size": 192,
            "patch_size": PATCH,
            "projection_dim": WIDTH,
        },
        text_config={
            **shared,
            "num_hidden_layers": 2,
            "vocab_size": vocabulary,
            "max_position_embeddings": 64,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "pad_token_id": pad,
            "projection_dim": WIDTH,
        },
    )


def sinusoids(side: int, width: int) -> Tensor:
    """[side * side, width] 2-D sine positions: a start from which attention finds its neighbours quickly."""
    place = torch.arange(side, dtype=torch.float32)[:, None]
    waves = place / (side ** (torch.arange(width // 4) / (width / 4)))[None, :] * 1.5
    one = torch.cat([waves.sin(), waves.cos()], dim=1)
    rows = one[:, None, :].expand(side, side, -1)
    cols = one[None, :, :].expand(side, side, -1)
    return torch.cat([rows, cols], dim=-1).reshape(side * side, width)


class Pair(nn.Module):
    """A CLIPModel with heads on the patches of the layer LLaVA reads; the heads are dropped after training."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.clip = CLIPModel(config)
        embeddings = self.clip.vision_model.embeddings
        with torch.no_grad():
            embeddings.position_embedding.weight[1:] = 0.5 * sinusoids(SIDE, WIDTH)
            embeddings.class_embedding.mul_(0.1)
            nn.init.normal_(embeddings.patch_embedding.weight, std=0.05)
        self.norm = nn.LayerNorm(WIDTH)
        self.heads = nn.Linear(WIDTH, sum(TARGETS.values()))

    def look(self, pixels: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """The patches [B, n, D] one layer before the end and the last layer's CLS state [B, D].

        `pixels` [B, 3, h, w] may be a window of the image; `places` [B, n] are its patches' indices in 24 x 24.
        """
        tower = self.clip.vision_model
        patches = tower.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        positions = tower.embeddings.position_embedding
        first = (tower.embeddings.class_embedding + positions.weight[0]).expand(len(pixels), 1, -1)
        states = tower.pre_layrnorm(torch.cat([first, patches + positions(places + 1)], dim=1))  # 0 is CLS's
        for layer in tower.encoder.layers[:-1]:
            states = layer(states, None)
        last = tower.encoder.layers[-1](states, None)
        return states[:, 1:], last[:, 0]

    def embed_image(self, states: Tensor) -> Tensor:
        """Unit vectors in the shared space, of CLS or of patch states."""
        return functional.normalize(
            self.clip.visual_projection(self.clip.vision_model.post_layernorm(states)), dim=-1
        )

    def embed_text(self, ids: Tensor) -> Tensor:
        """Unit vectors [n, D] of padded token ids [n, L]."""
        return functional.normalize(self.clip.get_text_features(input_ids=ids).pooler_output, dim=-1)


@dataclass
class Batch:
    """A batch of equal windows: pixels [B, 3, h, w], places [B, n], labels [B, n, 5], captions, phrases."""

    pixels: Tensor
    places: Tensor
    labels: Tensor
    captions: Tensor
    phrases: Tensor
    wanted: Tensor  # [phrases, B, n]: the patches a phrase describes

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True)
class Shelf:
    """Rendered scenes: images [n, 192, 192, 3] uint8, labels [n, 24, 24, 5]."""

    scenes: list[Scene]
    images: np.ndarray
    labels: np.ndarray


def make_step(
    stage: Stage, pair: Pair, shelf: Shelf, tokenizer: PreTrainedTokenizerFast, device: torch.device
) -> Step:
    """The training step of a stage: its loss and the numbers to log."""

    def step(at: int, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        batch = make_batch(shelf, tokenizer, rng, stage.batch, stage.cells).to(device)
        parts = losses(pair, batch)
        numbers = {name: part.item() for name, part in parts.items()}
        if at in stage.logged:
            numbers |= accuracy(pair, batch)
        return parts["dense"] + 0.5 * parts["contrast"] + 0.3 * parts["phrase"], numbers

    return step


def make_batch(
    shelf: Shelf, tokenizer: PreTrainedTokenizerFast, rng: random.Random, size: int, cells: int
) -> Batch:
    """`size` random windows of `cells` x `cells` cells, light and contrast changed a little."""
    pixels, places, targets, texts, phrases = [], [], [], [], []
    grid = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    for index in rng.sample(range(len(shelf.scenes)), size):
        row, col = rng.randint(0, GRID - cells), rng.randint(0, GRID - cells)
        down, right = range(row, row + cells), range(col, col + cells)
        rows, cols = slice(row * SPAN, (row + cells) * SPAN), slice(col * SPAN, (col + cells) * SPAN)
        window = slice(row * CELL, (row + cells) * CELL), slice(col * CELL, (col + cells) * CELL)
        pixels.append(shelf.images[index][window])
        places.append(grid[rows, cols].ravel())
        targets.append(shelf.labels[index, rows, cols].reshape(-1, len(TARGETS)))
        inside = tuple(t for t in shelf.scenes[index].things if t.row in down and t.col in right)
        texts.append(caption(inside, rng))
        if inside:
            phrases.append(describe(rng.choice(inside), rng))
    target = torch.from_numpy(np.stack(targets)).long()
    return Batch(
        _relight(torch.from_numpy(np.stack(pixels)), rng),
        torch.from_numpy(np.stack(places)),
        target,
        tokenizer(texts, padding=True, return_tensors="pt")["input_ids"],
        tokenizer([p.text() for p in phrases], padding=True, return_tensors="pt")["input_ids"],
        torch.stack([_described(target, phrase) for phrase in phrases]),
    )


def _relight(pixels: Tensor, rng: random.Random) -> Tensor:
    """[B, 3, h, w] normalised pixels of [B, h, w, 3] bytes, with contrast, light and noise changed."""
    size = len(pixels)
    light = torch.tensor([[rng.uniform(0.85, 1.15), rng.uniform(-0.2, 0.2)] for _ in range(size)])
    contrast, shift = light[:, 0, None, None, None], light[:, 1, None, None, None]
    inputs = (pixels.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD
    return inputs * contrast + shift + 0.06 * torch.randn(inputs.shape)


def _described(target: Tensor, phrase: Description) -> Tensor:
    """[B, n] bool: patches whose labels fit the phrase."""
    fits = torch.ones(target.shape[:2], dtype=torch.bool)
    for channel, name in enumerate(("shape", "colour", "size", "letter")):
        value = getattr(phrase, name)
        if value is not None:
            fits &= target[..., channel] == class_of(name, value)
    return fits


def losses(pair: Pair, batch: Batch) -> dict[str, Tensor]:
    """Dense labels, caption contrast and phrase-to-patch contrast."""
    patches, cls = pair.look(batch.pixels, batch.places)
    logits = pair.heads(pair.norm(patches)).split(list(TARGETS.values()), dim=-1)
    dense = torch.stack([_dense(logit, batch.labels[..., i]) for i, logit in enumerate(logits)]).sum()
    scale = pair.clip.logit_scale.clamp(max=4.6).exp()
    image, text = pair.embed_image(cls), pair.embed_text(batch.captions)
    scores = scale * image @ text.T
    same = (batch.captions[:, None] == batch.captions[None]).all(-1).float()
    goal = same / same.sum(1, keepdim=True)
    contrast = (functional.cross_entropy(scores, goal) + functional.cross_entropy(scores.T, goal)) / 2
    grounded = _phrase_loss(
        scale * pair.embed_text(batch.phrases) @ pair.embed_image(patches).flatten(0, 1).T, batch.wanted
    )
    return {"dense": dense, "contrast": contrast, "phrase": grounded}


def _dense(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy in which things and background weigh the same, however few patches things cover."""
    loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORE)
    thing, ground = labels.flatten() > 0, labels.flatten() == 0
    return loss[thing].mean() + 0.5 * loss[ground].mean()


def _phrase_loss(scores: Tensor, wanted: Tensor) -> Tensor:
    """Log-probability mass a phrase puts on the patches it describes, among all patches of the batch."""
    fits = wanted.flatten(1)
    rows = fits.any(1)
    kept = scores[rows].masked_fill(~fits[rows], float("-inf"))
    return (scores[rows].logsumexp(1) - kept.logsumexp(1)).mean()


@torch.no_grad()
def accuracy(pair: Pair, batch: Batch) -> dict[str, float]:
    """Share of thing patches whose class is read right, per target, and caption retrieval within the batch."""
    patches, cls = pair.look(batch.pixels, batch.places)
    logits = pair.heads(pair.norm(patches)).split(list(TARGETS.values()), dim=-1)
    result = {}
    for i, (name, logit) in enumerate(zip(TARGETS, logits, strict=True)):
        thing = batch.labels[..., i] > 0
        result[name] = (logit.argmax(-1) == batch.labels[..., i])[thing].float().mean().item()
    scores = pair.embed_image(cls) @ pair.embed_text(batch.captions).T
    own = torch.arange(len(scores), device=scores.device)
    result["retrieval"] = (scores.argmax(1) == own).float().mean().item()
    return result
