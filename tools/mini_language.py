"""Stages 2 and 3 of mini: the language model learns to answer from the frozen tower's cached features.

Many questions stand behind one image; a mask lets each see the image and itself only, and its positions start right after the
image, so that training sees exactly the prompts of later use. Early on the language model gets only some patches per cell, at
their true positions, each weighted in attention for the ones it stands for; it finishes on all 576.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from mini_data import GRID, SIDE, SPAN
from mini_tower import MEAN, STD, Pair
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from foveate.mini.phrases import name_uniquely, noun, of
from foveate.mini.questions import SIDE_WORDS, SIDES, SKILLS, ask
from foveate.mini.scenes import COLOURS, LETTERS, SHAPES, SIZES, Scene, Thing

TOKENS = SIDE * SIDE
OPENING = "USER: <image>"
# Exercises that are no skill: read out the whole picture, one cell, a thing's neighbour, a thing.
AIDS = ("list", "cell", "next", "find")


@dataclass(frozen=True)
class Pick:
    """Which patches the language model sees: indices [B, n] into 576, and their weights' logarithms [B, n]."""

    indices: np.ndarray
    bias: np.ndarray


@dataclass
class Pack:
    """Prompts packed behind their images. All [B, L] but `mask` [B, 1, L, L]; `target` is -100 away from answers."""

    ids: Tensor
    positions: Tensor
    target: Tensor
    weight: Tensor
    mask: Tensor
    opening: int


def exercise(scene: Scene, rng: random.Random, kind: str) -> tuple[str, str] | None:
    """A question text and its answer, for a skill or an aid."""
    if kind == "list":
        return "List the things.", ", ".join(map(_read, scene.things))
    if kind == "cell":
        empty = rng.random() < 0.2
        row, col = (rng.randrange(GRID), rng.randrange(GRID)) if empty else _place(rng.choice(scene.things))
        found = [thing for thing in scene.things if _place(thing) == (row, col)]
        return f"What is in cell {'abcdef'[col]}{row + 1}?", _read(found[0]) if found else "nothing"
    if kind == "find":
        thing = rng.choice(scene.things)
        alone = of(thing, ("letter",)).count(scene) == 1 and rng.random() < 0.5
        named = of(thing, ("letter",)) if alone else name_uniquely(scene, thing, rng)
        return (f"What is the {named.text()}?", _read(thing)) if named else None
    if kind == "next":
        return _neighbour(scene, rng)
    for _ in range(6):
        question = ask(scene, rng, kind)
        if question:
            return question.text, question.answer
    return None


def _neighbour(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    cells = {_place(thing): thing for thing in scene.things}
    sides = [(thing, side) for thing in scene.things for side, (down, right) in SIDES.items()
             if (thing.row + down, thing.col + right) in cells or rng.random() < 0.05]  # fmt: skip
    if not sides:
        return None
    thing, side = rng.choice(sides)
    named = name_uniquely(scene, thing, rng)
    if named is None:
        return None
    found = cells.get((thing.row + SIDES[side][0], thing.col + SIDES[side][1]))
    return f"What is directly {SIDE_WORDS[side]} the {named.text()}?", _read(found) if found else "nothing"


def _read(thing: Thing) -> str:
    return f"{thing.size} {thing.colour} {thing.shape} {thing.letter} {thing.cell}"


def _place(thing: Thing) -> tuple[int, int]:
    return thing.row, thing.col


def pick_patches(labels: np.ndarray, extra: int, rng: np.random.Generator) -> Pick:
    """One patch per cell, a thing's centre where there is one, and `extra` random others; all of them if `extra` is 15.

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
    loss = F.cross_entropy(logits, packed.target[wanted], reduction="none")
    weight = packed.weight[wanted]
    return (loss * weight).sum() / weight.sum()


@torch.no_grad()
def cache_features(pair: Pair, images: np.ndarray, batch: int = 32) -> np.ndarray:
    """[n, 576, D] float16 patch states of the layer LLaVA reads."""
    features = np.empty((len(images), TOKENS, pair.clip.config.vision_config.hidden_size), dtype=np.float16)
    places = torch.arange(TOKENS)[None]
    for start in range(0, len(images), batch):
        part = torch.from_numpy(images[start : start + batch])
        pixels = (part.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD
        features[start : start + batch] = pair.look(pixels, places.expand(len(part), -1))[0].numpy()
    return features


MIXTURES: tuple[dict[str, float], ...] = (  # how often each exercise is drawn: to begin with, then, at last
    {"cell": 2, "find": 3, "attribute": 3, "reading": 2, "location": 3, "existence": 1},
    {
        "find": 4,
        "attribute": 4,
        "location": 3,
        "existence": 1.5,
        "counting": 1.5,
        "relation": 1.5,
        "comparison": 1,
        "reading": 0.7,
        "compositional": 0.6,
    },
    {"cell": 0.3, "find": 0.5, "list": 0.2, "compositional": 2.5, "counting": 1.5, "relation": 1.3, "comparison": 1.3},
)
REST = (0.1, 0.2, 1.0)  # the weight of exercises not named above


def mixture(progress: float) -> dict[str, float]:
    """How often each exercise is drawn at `progress` 0 to 2 along MIXTURES."""
    progress = max(0.0, min(1.9999, progress))
    at, blend = int(progress), progress % 1
    return {
        kind: (1 - blend) * MIXTURES[at].get(kind, REST[at]) + blend * MIXTURES[at + 1].get(kind, REST[at + 1])
        for kind in (*AIDS, *SKILLS)
    }


def draw_prompts(
    scene: Scene, rng: random.Random, count: int, weights: dict[str, float]
) -> list[tuple[str, str, float]]:
    """`count` exercises on one scene, at most one list."""
    prompts: list[tuple[str, str, float]] = []
    kinds = rng.choices(list(weights), list(weights.values()), k=3 * count)
    for kind in kinds:
        if len(prompts) == count:
            break
        if kind == "list" and any(weight < 0.2 for _, _, weight in prompts):
            continue
        found = exercise(scene, rng, kind)
        if found:
            prompts.append((*found, {"list": 0.15, "cell": 0.4, "next": 0.4, "find": 0.6}.get(kind, 1.0)))
    return prompts


def cosine(step: int, steps: int, warm: int) -> float:
    """Learning-rate factor: linear warm-up, then a cosine down to 2 %."""
    return min(1.0, (step + 1) / warm) * (0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, step / steps))))


@torch.no_grad()
def answers_right(
    model: LlavaForConditionalGeneration,
    prompts: list[tuple[str, str]],
    features: np.ndarray,
    pick: Pick,
    tokenizer: PreTrainedTokenizerFast,
    batch: int = 16,
) -> list[bool]:
    """For each (question, answer) about its own image, whether greedy decoding would give exactly this answer."""
    right: list[bool] = []
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        some = Pick(pick.indices[part], pick.bias[part])
        packed = pack([[(question, answer, 1.0)] for question, answer in prompts[part]], some, tokenizer)
        seen = np.take_along_axis(features[part], some.indices[..., None], axis=1)
        image = model.model.multi_modal_projector(torch.from_numpy(seen).float())
        logits = answer_logits(model, packed, image)
        rows, wanted = (packed.target >= 0).nonzero()[:, 0], packed.target[packed.target >= 0]
        hit = logits.argmax(-1) == wanted
        right += [bool(hit[rows == row].all()) for row in range(len(packed.ids))]
    return right


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
        words = F.normalize(embedding, dim=-1)
        scores = 10 * F.normalize(image, dim=-1) @ words.T
        total = F.cross_entropy(scores[..., self.rows].flatten(0, 1), (indices // SIDE // SPAN).flatten())
        total = total + F.cross_entropy(scores[..., self.columns].flatten(0, 1), (indices % SIDE // SPAN).flatten())
        for channel, groups in self.shown.items():
            shown = labels[..., channel] > 0
            for group in groups:
                total = total + F.cross_entropy(scores[shown][:, group], labels[..., channel][shown].long() - 1)
        return total
