"""The language model of mini learns to answer, from words for patches, then from the tower's cached features."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from foveate.mini.questions import SKILLS, Question
from foveate.mini.scenes import Scene
from mini_exercises import draw_prompts
from mini_forward import answer_logits, answer_loss
from mini_pack import TOKENS, Pick, pack, pick_patches
from mini_stage import Stage, Step
from mini_symbols import Symbols
from mini_tower import MEAN, STD, Pair

NOISE = 0.03  # on words that stand for patches


@dataclass(frozen=True)
class Shelf:
    """Named scenes with labels [n, 24, 24, 5] and, once there is a tower, its features [n, 576, D] float16."""

    name: str
    scenes: list[Scene]
    features: np.ndarray | None
    labels: np.ndarray

    def look(self, chosen: list[int], pick: Pick) -> tuple[Tensor, Tensor]:
        """The picked patches' labels [B, n, 5] and indices [B, n] into 576."""
        labels = self.labels.reshape(len(self.labels), TOKENS, -1)
        seen = labels[np.asarray(chosen)[:, None], pick.indices]
        return torch.from_numpy(seen), torch.from_numpy(pick.indices)

    def take(self, chosen: list[int], pick: Pick) -> Tensor:
        """The picked patches' features [B, n, D] float32."""
        if self.features is None:
            raise ValueError("this shelf holds no features")
        return torch.from_numpy(self.features[np.asarray(chosen)[:, None], pick.indices]).float()


class Eyes:
    """What the language model sees of picked patches: the words for them, or the projected features."""

    def __init__(self, model: LlavaForConditionalGeneration, symbols: Symbols, device: torch.device) -> None:
        self.model, self.symbols, self.device = model, symbols, device

    def words(self, shelf: Shelf, chosen: list[int], pick: Pick, names: Tensor | None = None) -> Tensor:
        """[B, n, D] sums of word embeddings, renamed by `names` [B, V]."""
        labels, indices = (part.to(self.device) for part in shelf.look(chosen, pick))
        return self.symbols.goal(labels, indices, self.model.get_input_embeddings().weight, names)

    def patches(self, shelf: Shelf, chosen: list[int], pick: Pick) -> Tensor:
        """[B, n, D] projected features."""
        return self.model.model.multi_modal_projector(shelf.take(chosen, pick).to(self.device))

    def off(self, image: Tensor, shelf: Shelf, chosen: list[int], pick: Pick) -> Tensor:
        """How far projected features are from the words."""
        labels, indices = (part.to(self.device) for part in shelf.look(chosen, pick))
        return self.symbols.loss(image, labels, indices, self.model.get_input_embeddings().weight)


def make_step(
    stage: Stage, eyes: Eyes, shelf: Shelf, tokenizer: PreTrainedTokenizerFast, device: torch.device
) -> Step:
    """The training step of a stage: its loss and the numbers to log."""

    def step(at: int, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        if stage.rehearse and at % stage.rehearse == 0:
            return one(rehearsal, rng)
        return one(stage, rng)

    def one(stage: Stage, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        chosen = rng.sample(range(len(shelf.scenes)), stage.batch)
        pick = pick_patches(shelf.labels[chosen], stage.extra, np.random.default_rng(rng.getrandbits(32)))
        names = eyes.symbols.shuffle(stage.batch, rng) if stage.shuffled else None
        if stage.words:
            image = eyes.words(shelf, chosen, pick, names)
            image = image + NOISE * torch.randn_like(image)
            away = torch.zeros((), device=device)
        else:
            image = eyes.patches(shelf, chosen, pick)
            away = eyes.off(image, shelf, chosen, pick)
        if not stage.questions:
            return away, {"away": away.item()}
        prompts = [draw_prompts(shelf.scenes[index], rng, stage.questions) for index in chosen]
        packed = pack(prompts, pick, tokenizer).to(device)
        packed = packed if names is None else packed.renamed(names)
        loss = answer_loss(answer_logits(eyes.model, packed, image), packed)
        return loss + 0.1 * away, {"loss": loss.item(), "away": away.item()}

    rehearsal = replace(stage, words=True, shuffled=True, extra=0, batch=24, questions=14)
    return step


class Watch:
    """Dev questions, to see how training goes."""

    def __init__(
        self, eyes: Eyes, shelf: Shelf, questions: list[Question], tokenizer: PreTrainedTokenizerFast
    ) -> None:
        self.eyes, self.shelf, self.questions, self.tokenizer = eyes, shelf, questions, tokenizer

    def accuracy(self, stage: Stage) -> dict[str, float]:
        """Share answered right, every step of it, per skill, on the patches this stage shows."""
        if not stage.questions:
            return {}
        right: dict[str, list[bool]] = {skill: [] for skill in SKILLS}
        for start in range(0, len(self.questions), 16):
            chosen = list(range(start, min(start + 16, len(self.questions))))
            for index, hit in zip(chosen, self._answer(chosen, stage), strict=True):
                right[self.questions[index].skill].append(hit)
        return {skill: float(np.mean(hits)) for skill, hits in right.items()}

    @torch.no_grad()
    def _answer(self, chosen: list[int], stage: Stage) -> list[bool]:
        """Whether greedy decoding would give exactly the right steps and answer."""
        pick = pick_patches(self.shelf.labels[chosen], stage.extra, np.random.default_rng(0))
        prompts = [[(self.questions[i].text, self.questions[i].spoken, 1.0)] for i in chosen]
        packed = pack(prompts, pick, self.tokenizer).to(self.eyes.device)
        see = self.eyes.words if stage.words else self.eyes.patches
        logits = answer_logits(self.eyes.model, packed, see(self.shelf, chosen, pick))
        wanted = packed.target >= 0
        hit = logits.argmax(-1) == packed.target[wanted]
        rows = packed.row[wanted]
        return [bool(hit[rows == row].all()) for row in range(len(chosen))]


@torch.no_grad()
def cache_features(pair: Pair, images: np.ndarray, device: torch.device, batch: int = 32) -> np.ndarray:
    """[n, 576, D] float16 patch states of the layer LLaVA reads."""
    features = np.empty((len(images), TOKENS, pair.clip.config.vision_config.hidden_size), dtype=np.float16)
    places = torch.arange(TOKENS, device=device)[None]
    for start in range(0, len(images), batch):
        part = torch.from_numpy(images[start : start + batch]).to(device)
        pixels = (part.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD
        features[start : start + batch] = pair.look(pixels, places.expand(len(part), -1))[0].cpu().numpy()
    return features
