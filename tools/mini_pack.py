"""Many questions behind one image, and which patches of it the language model of mini sees in training.

Each question's positions start right after the image, so that training sees exactly the prompts of later use.
Early on the language model gets only some patches per cell, at their true positions, weighted in attention for
the ones it stands for; it finishes on all 576.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from foveate.mini.scenes import GRID
from mini_data import IGNORE, SIDE, SPAN
from mini_forward import Pack

TOKENS = SIDE * SIDE
OPENING = "USER: <image>"


@dataclass(frozen=True)
class Pick:
    """Which patches the language model sees: indices [B, n] into 576, and their weights' logarithms [B, n]."""

    indices: np.ndarray
    bias: np.ndarray


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
    weight = np.full(order.shape, (SPAN * SPAN - 1) / max(extra, 1), dtype=np.float32)  # no extra: things weigh 1
    weight[..., 0] = 1
    weight[~full] = SPAN * SPAN / (extra + 1)
    indices = np.take_along_axis(np.broadcast_to(cells, (batch, *cells.shape)), order, axis=-1).reshape(batch, -1)
    sort = np.argsort(indices, axis=-1)
    bias = np.log(weight).reshape(batch, -1)
    return Pick(np.take_along_axis(indices, sort, -1), np.take_along_axis(bias, sort, -1))


def pack(prompts: list[list[tuple[str, str, float]]], pick: Pick, tokenizer: PreTrainedTokenizerFast) -> Pack:
    """Each image's (question, answer, weight) triples behind it."""
    opening = tokenizer(OPENING)["input_ids"][:-1]
    start, batch, most = len(opening), len(prompts), max(map(len, prompts))
    flat = [
        (image * most + number, *item) for image, group in enumerate(prompts) for number, item in enumerate(group)
    ]
    asked = tokenizer([f"\n{q} ASSISTANT:" for _, q, _, _ in flat], add_special_tokens=False)["input_ids"]
    told = tokenizer([f" {a}</s>" for _, _, a, _ in flat], add_special_tokens=False)["input_ids"]
    ids, row, offset, target, weights = ([] for _ in range(5))
    for (number, _, _, weight), question, answer in zip(flat, asked, told, strict=True):
        length = len(question) + len(answer) - 1  # nothing follows the end
        ids += (question + answer)[:-1]
        row += [number] * length
        offset += range(length)
        target += [IGNORE] * (len(question) - 1) + answer
        weights += [weight] * length
    ahead = np.tile(np.arange(start), (batch, 1))
    after = torch.tensor(offset)
    return Pack(
        opening=torch.tensor(opening),
        places=torch.from_numpy(np.concatenate([ahead, start + pick.indices], axis=1)),
        bias=torch.from_numpy(np.concatenate([np.zeros_like(ahead, dtype=np.float32), pick.bias], axis=1)),
        ids=torch.tensor(ids),
        positions=start + TOKENS + after,
        row=torch.tensor(row),
        offset=after,
        target=torch.tensor(target),
        weight=torch.tensor(weights),
        questions=most,
    )
