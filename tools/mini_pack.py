"""Many questions behind one image, and how the language model of mini sees them in training.

A mask lets each question see the image and itself only, and its positions start right after the image, so that
training sees exactly the prompts of later use. Early on the language model gets only some patches per cell, at
their true positions, each weighted in attention for the ones it stands for; it finishes on all 576.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from foveate.mini.scenes import GRID
from mini_data import SIDE, SPAN

TOKENS = SIDE * SIDE
OPENING = "USER: <image>"


@dataclass(frozen=True)
class Pick:
    """Which patches the language model sees: indices [B, n] into 576, and their weights' logarithms [B, n]."""

    indices: np.ndarray
    bias: np.ndarray


@dataclass
class Pack:
    """Prompts packed behind their images: all [B, L], `mask` [B, 1, L, L]; `target` is -100 away from answers."""

    ids: Tensor
    positions: Tensor
    target: Tensor
    weight: Tensor
    mask: Tensor
    opening: int

    def to(self, device: torch.device) -> Pack:
        """The same on another device."""
        tensors = (self.ids, self.positions, self.target, self.weight, self.mask)
        return Pack(*(tensor.to(device) for tensor in tensors), self.opening)


def pick_patches(labels: np.ndarray, extra: int, rng: np.random.Generator) -> Pick:
    """One patch per cell, a thing's centre where there is one, and `extra` random others; with 15, all.

    `labels` [B, 24, 24, 5] as of `patch_labels`. A patch's weight is the number of patches it stands for.
    """
    batch = len(labels)
    if extra == SPAN * SPAN - 1:
        return Pick(np.tile(np.arange(TOKENS), (batch, 1)), np.zeros((batch, TOKENS), dtype=np.float32))
    cells = (
        np.arange(TOKENS).reshape(GRID, SPAN, GRID, SPAN).transpose(0, 2, 1, 3).reshape(GRID * GRID, SPAN * SPAN)
    )
    centre = labels[..., 4].reshape(batch, TOKENS)[:, cells] == 1
    order = np.argsort(rng.random(centre.shape) - 2 * centre, axis=-1)[..., : extra + 1]
    full = centre.any(-1)
    weight = np.full(order.shape, (SPAN * SPAN - 1) / max(extra, 1), dtype=np.float32)
    weight[..., 0] = 1
    weight[~full] = SPAN * SPAN / (extra + 1)
    indices = np.take_along_axis(np.broadcast_to(cells, (batch, *cells.shape)), order, axis=-1).reshape(batch, -1)
    sort = np.argsort(indices, axis=-1)
    bias = np.log(weight).reshape(batch, -1) * (extra > 0)
    return Pick(np.take_along_axis(indices, sort, -1), np.take_along_axis(bias, sort, -1))


def pack(prompts: list[list[tuple[str, str, float]]], pick: Pick, tokenizer: PreTrainedTokenizerFast) -> Pack:
    """Pack each image's (question, answer, weight) triples behind it."""
    opening = tokenizer(OPENING)["input_ids"][:-1]
    start, n = len(opening), pick.indices.shape[1]
    flat = [item for group in prompts for item in group]
    asked = iter(tokenizer([f"\n{q} ASSISTANT:" for q, _, _ in flat], add_special_tokens=False)["input_ids"])
    told = iter(tokenizer([f" {a}</s>" for _, a, _ in flat], add_special_tokens=False)["input_ids"])
    rows = [[(next(asked), next(told), weight) for _, _, weight in group] for group in prompts]
    batch, length = len(rows), start + n + max(sum(len(q) + len(a) - 1 for q, a, _ in row) for row in rows)
    ids, positions, target = (np.zeros((batch, length), dtype=np.int64) for _ in range(3))
    target -= 100
    weights = np.zeros((batch, length), dtype=np.float32)
    segment = np.full((batch, length), -1)
    ids[:, :start], positions[:, :start] = opening, np.arange(start)
    positions[:, start : start + n] = start + pick.indices
    segment[:, : start + n] = 0
    for i, row in enumerate(rows):
        at = start + n
        for number, (question, answer, weight) in enumerate(row, 1):
            end = at + len(question) + len(answer) - 1
            ids[i, at:end] = (question + answer)[:-1]
            positions[i, at:end] = start + TOKENS + np.arange(end - at)
            target[i, end - len(answer) : end] = answer
            weights[i, end - len(answer) : end] = weight
            segment[i, at:end] = number
            at = end
    bias = np.zeros((batch, length), dtype=np.float32)
    bias[:, start : start + n] = pick.bias
    return Pack(*map(torch.from_numpy, (ids, positions, target, weights)), _mask(segment, bias), start)


def _mask(segment: np.ndarray, bias: np.ndarray) -> Tensor:
    """[B, 1, L, L] to add to the attention scores: causal, the own question and the image only."""
    seg, length = torch.from_numpy(segment), segment.shape[1]
    seen = (seg[:, None, :] == 0) | (seg[:, None, :] == seg[:, :, None])
    seen &= torch.ones(length, length, dtype=torch.bool).tril()
    scores = torch.from_numpy(bias)[:, None, :].expand(-1, length, -1)
    return torch.where(seen, scores, torch.tensor(torch.finfo(torch.float32).min))[:, None]


def answer_logits(model: LlavaForConditionalGeneration, packed: Pack, image: Tensor) -> Tensor:
    """[answer tokens, vocabulary] logits; `image` [B, n, D] are the projected patches."""
    embed = model.get_input_embeddings()
    text = embed(packed.ids)
    states = torch.cat([text[:, : packed.opening], image, text[:, packed.opening + image.shape[1] :]], dim=1)
    output = model.model.language_model(
        inputs_embeds=states, attention_mask=packed.mask, position_ids=packed.positions, use_cache=False
    )
    return model.lm_head(output.last_hidden_state[packed.target >= 0])


def answer_loss(logits: Tensor, packed: Pack) -> Tensor:
    """Weighted cross entropy of the answers."""
    wanted = packed.target >= 0
    loss = functional.cross_entropy(logits, packed.target[wanted], reduction="none")
    weight = packed.weight[wanted]
    return (loss * weight).sum() / weight.sum()
