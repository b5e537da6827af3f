"""Stages 2 and 3 of mini: the language model learns to answer from the frozen tower's cached features."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from foveate.mini.questions import SKILLS, Question
from foveate.mini.scenes import Scene
from mini_align import Lexicon
from mini_data import patch_labels, render
from mini_exercises import draw_prompts, mixture
from mini_pack import TOKENS, Pick, answer_logits, answer_loss, pack, pick_patches
from mini_stage import Stage, Step
from mini_tower import MEAN, STD, Pair


@dataclass(frozen=True)
class Shelf:
    """Scenes with the tower's features [n, 576, D] float16 and labels [n, 24, 24, 5]."""

    scenes: list[Scene]
    features: np.ndarray
    labels: np.ndarray

    def take(self, chosen: list[int], pick: Pick) -> tuple[Tensor, Tensor]:
        """The picked patches' features [B, n, D] float32 and labels [B, n, 5]."""
        rows, places = np.asarray(chosen)[:, None], pick.indices
        labels = self.labels.reshape(len(self.labels), TOKENS, -1)
        return torch.from_numpy(self.features[rows, places]).float(), torch.from_numpy(labels[rows, places])


def make_step(
    stage: Stage,
    model: LlavaForConditionalGeneration,
    shelf: Shelf,
    lexicon: Lexicon,
    tokenizer: PreTrainedTokenizerFast,
    device: torch.device,
) -> Step:
    """The training step of a stage: its loss and the numbers to log."""

    def step(at: int, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        chosen = rng.sample(range(len(shelf.scenes)), stage.batch)
        pick = pick_patches(shelf.labels[chosen], stage.extra, np.random.default_rng(rng.getrandbits(32)))
        features, labels = shelf.take(chosen, pick)
        image = model.model.multi_modal_projector(features.to(device))
        places = torch.from_numpy(pick.indices).to(device)
        aligned = lexicon.loss(image, labels.to(device), places, model.get_input_embeddings().weight)
        if not stage.questions:
            return aligned, {"align": aligned.item()}
        low, high = stage.blend
        weights = mixture(low + (high - low) * at / stage.steps)
        weights = {kind: weight * (8 if kind in stage.focus else 1) for kind, weight in weights.items()}
        prompts = [draw_prompts(shelf.scenes[index], rng, stage.questions, weights) for index in chosen]
        packed = pack(prompts, pick, tokenizer).to(device)
        loss = answer_loss(answer_logits(model, packed, image), packed)
        return loss + 0.2 * aligned, {"loss": loss.item(), "align": aligned.item()}

    return step


class Watch:
    """Dev questions with their features, to see how training goes."""

    def __init__(
        self,
        pair: Pair,
        questions: list[tuple[Scene, Question]],
        tokenizer: PreTrainedTokenizerFast,
        device: torch.device,
    ) -> None:
        self.questions, self.tokenizer, self.device = questions, tokenizer, device
        scenes = [scene for scene, _ in questions]
        features = cache_features(pair, np.stack([render(scene) for scene in scenes]), device)
        self.shelf = Shelf(scenes, features, np.stack([patch_labels(scene) for scene in scenes]))

    def accuracy(self, model: LlavaForConditionalGeneration, stage: Stage) -> dict[str, float]:
        """Share answered right per skill, on the patches this stage shows; nothing where it asks nothing."""
        if not stage.questions:
            return {}
        right: dict[str, list[bool]] = {skill: [] for skill in SKILLS}
        for start in range(0, len(self.questions), 16):
            chosen = list(range(start, min(start + 16, len(self.questions))))
            for index, hit in zip(chosen, self._answer(model, chosen, stage.extra), strict=True):
                right[self.questions[index][1].skill].append(hit)
        return {skill: float(np.mean(hits)) for skill, hits in right.items()}

    @torch.no_grad()
    def _answer(self, model: LlavaForConditionalGeneration, chosen: list[int], extra: int) -> list[bool]:
        """Whether greedy decoding would give exactly the right answer."""
        pick = pick_patches(self.shelf.labels[chosen], extra, np.random.default_rng(0))
        prompts = [[(self.questions[i][1].text, self.questions[i][1].answer, 1.0)] for i in chosen]
        packed = pack(prompts, pick, self.tokenizer).to(self.device)
        features, _ = self.shelf.take(chosen, pick)
        logits = answer_logits(model, packed, model.model.multi_modal_projector(features.to(self.device)))
        wanted = packed.target >= 0
        hit = logits.argmax(-1) == packed.target[wanted]
        rows = wanted.nonzero()[:, 0]
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
