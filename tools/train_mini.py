"""Train mini from nothing: the CLIP pair, then the language model, then export. Stop and start again at will.

    python tools/train_mini.py                 # train (resumes), a few hours on two cores
    python tools/train_mini.py --export        # write the checkpoint into the package
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import mini_data as data
import mini_language as language
import mini_tower as tower
import numpy as np
import torch
from mini_export import build_processor, export, llava_config
from mini_words import build_tokenizer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from foveate.mini import PATH
from foveate.mini.exam import exam
from foveate.mini.phrases import caption
from foveate.mini.questions import SKILLS
from foveate.mini.scenes import Scene

LOG_EVERY, SAVE_EVERY = 25, 50


@dataclass(frozen=True)
class Stage:
    """One stretch of training. `horizon` is where its learning rate would reach the floor."""

    name: str
    steps: int
    batch: int
    rate: float
    horizon: int
    cells: int = 0  # tower: window side in cells
    extra: int = 0  # language model: random patches per cell beside the first
    questions: int = 0
    muon: bool = False
    blend: tuple[float, float] = (2.0, 2.0)  # language model: mixture() at the start and at `steps`


TOWER = (
    Stage("crops", steps=800, batch=64, rate=1.5e-3, horizon=2400, cells=3),
    Stage("whole", steps=160, batch=24, rate=8e-4, horizon=160, cells=6),
)
LANGUAGE = (
    Stage("align", steps=300, batch=64, rate=5e-3, horizon=300, extra=1),
    Stage("centres", steps=400, batch=24, rate=2e-3, horizon=1400, extra=0, questions=14, muon=True, blend=(0.6, 1.15)),
    Stage("coarse", steps=150, batch=24, rate=1.5e-3, horizon=600, extra=3, questions=14, muon=True, blend=(1.0, 1.3)),
    Stage("long", steps=550, batch=24, rate=2e-3, horizon=650, extra=1, questions=14, muon=True, blend=(1.0, 1.6)),
    Stage("fine", steps=100, batch=16, rate=4e-4, horizon=100, extra=15, questions=20, muon=True, blend=(1.6, 1.6)),
)


class Trainer:
    """The work folder: data made once, weights and log of every stage."""

    def __init__(self, work: Path, scenes: int, crowded: int, seed: int, compiled: bool) -> None:
        self.work, self.count, self.crowded, self.seed = work, scenes, crowded, seed
        work.mkdir(parents=True, exist_ok=True)
        self.compiled = compiled
        torch.manual_seed(seed)
        self.clip_words, self.words = self._tokenizers()

    def _tokenizers(self) -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
        rng = random.Random(self.seed)
        scenes = [data.crowded_scene(i) for i in range(6000)]
        captions = [caption(scene.things, rng) for scene in scenes] + ["an image of nothing"] * 3
        prompts = []
        for index in range(3000):
            scene = data.plain_scene(index)
            found = [language.exercise(scene, rng, kind) for kind in ("list", "cell", "next", *SKILLS)]
            prompts += [f"USER: \n{pair[0]} ASSISTANT: {pair[1]}" for pair in found if pair]
        return (
            build_tokenizer(captions, 700, lowercase=True, eos=True),
            build_tokenizer(prompts, 800, lowercase=False, eos=False),
        )

    def new_pair(self) -> tower.Pair:
        """An untrained CLIP pair."""
        words = self.clip_words
        return tower.Pair(tower.clip_config(len(words), words.bos_token_id, words.eos_token_id, words.pad_token_id))

    def trained_pair(self) -> tower.Pair:
        """The pair after its last finished stage, its weights rounded to the half precision they ship in."""
        pair = self.new_pair()
        pair.load_state_dict(torch.load(self.work / f"{TOWER[-1].name}.pt", weights_only=True)["model"])
        pair.clip.half().float()
        return pair.eval().requires_grad_(False)

    def new_model(self, pair: tower.Pair) -> LlavaForConditionalGeneration:
        """A LLaVA model over the pair's frozen tower, its language model untrained."""
        model = LlavaForConditionalGeneration(llava_config(pair.clip, self.words, layers=5, width=192))
        nn.init.normal_(model.get_input_embeddings().weight, std=0.1)
        for linear in (model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        model.model.vision_tower.load_state_dict(pair.clip.vision_model.state_dict())
        model.model.vision_tower.requires_grad_(False)
        return model

    def train_tower(self) -> None:
        """Stage by stage, each from the weights of the one before."""
        pair, before = self.new_pair(), None
        for stage in TOWER:
            if not self._finished(stage):
                self._continue(pair, before)
                maker = data.crowded_scene if stage.cells < 6 else data.mixed_scene
                scenes = [maker(i) for i in range(self.crowded)]
                images, labels = data.render_all(scenes), np.stack([data.patch_labels(scene) for scene in scenes])

                def step(rng: random.Random) -> tuple[torch.Tensor, dict[str, float]]:
                    batch = tower.make_batch(scenes, images, labels, self.clip_words, rng, stage.batch, stage.cells)  # noqa: B023
                    parts = tower.losses(pair, batch)
                    loss = parts["dense"] + 0.5 * parts["contrast"] + 0.3 * parts["phrase"]
                    logged = (self.at + 1) % LOG_EVERY == 0
                    return loss, {name: part.item() for name, part in parts.items()} | (tower.accuracy(pair, batch) if logged else {})

                self._run(stage, pair, step, lambda: {})
            before = stage

    def train_language(self) -> None:
        """Coarse, then fine; the tower's features are computed once."""
        pair = self.trained_pair()
        scenes = [data.plain_scene(i) for i in range(self.count)]
        features = self._features(pair, scenes)
        labels = np.stack([data.patch_labels(scene) for scene in scenes])
        dev = exam(256, seed=self.seed, split="dev")
        dev_features = language.cache_features(pair, np.stack([data.render(scene) for scene, _ in dev]))
        dev_labels = np.stack([data.patch_labels(scene) for scene, _ in dev])
        model, before, lexicon = self.new_model(pair), None, language.Lexicon(self.words)
        if self.compiled:
            for layer in model.model.language_model.layers:
                layer.forward = torch.compile(layer.forward, dynamic=True)
        for stage in LANGUAGE:
            if not self._finished(stage):
                self._continue(model, before)

                def step(rng: random.Random) -> tuple[torch.Tensor, dict[str, float]]:
                    chosen = rng.sample(range(self.count), stage.batch)  # noqa: B023
                    low, high = stage.blend  # noqa: B023
                    weights = language.mixture(low + (high - low) * self.at / stage.steps)  # noqa: B023
                    pick = language.pick_patches(labels[chosen], stage.extra, np.random.default_rng(rng.getrandbits(32)))  # noqa: B023
                    seen = np.take_along_axis(features[chosen], pick.indices[..., None], axis=1)
                    shown = np.take_along_axis(labels[chosen].reshape(stage.batch, -1, 5), pick.indices[..., None], axis=1)  # noqa: B023
                    image = model.model.multi_modal_projector(torch.from_numpy(seen).float())
                    embedding = model.get_input_embeddings().weight
                    aligned = lexicon.loss(image, torch.from_numpy(shown), torch.from_numpy(pick.indices), embedding)
                    if not stage.questions:  # noqa: B023
                        return aligned, {"align": aligned.item()}
                    prompts = [language.draw_prompts(scenes[i], rng, stage.questions, weights) for i in chosen]  # noqa: B023
                    packed = language.pack(prompts, pick, self.words)
                    logits = language.answer_logits(model, packed, image)
                    loss = language.answer_loss(logits, packed)
                    return loss + 0.05 * aligned, {"loss": loss.item(), "align": aligned.item()}

                def examine() -> dict[str, float]:
                    if not stage.questions:  # noqa: B023
                        return {}
                    prompts = [(question.text, question.answer) for _, question in dev]
                    pick = language.pick_patches(dev_labels, stage.extra, np.random.default_rng(0))  # noqa: B023
                    right = language.answers_right(model, prompts, dev_features, pick, self.words)
                    skills = [question.skill for _, question in dev]
                    return {name: float(np.mean([r for r, s in zip(right, skills, strict=True) if s == name])) for name in SKILLS}

                self._run(stage, model, step, examine)
            before = stage

    def export(self) -> None:
        """Write the newest language model and its pair into the package."""
        pair = self.trained_pair()
        model = self.new_model(pair)
        newest = max((self.work / f"{stage.name}.pt" for stage in LANGUAGE), key=lambda p: p.stat().st_mtime if p.exists() else 0)
        model.load_state_dict(torch.load(newest, weights_only=True)["model"])
        size = export(PATH, model.eval(), build_processor(self.words), pair.clip, self.clip_words)
        print(f"{newest.name} -> {PATH.name}/, {size / 1e6:.1f} MB")

    def _features(self, pair: tower.Pair, scenes: list[Scene]) -> np.ndarray:
        """[n, 576, D] float16, kept on disk between runs."""
        path = self.work / f"features-{len(scenes)}.npy"
        if not path.exists():
            np.save(path, language.cache_features(pair, data.render_all(scenes)))
        return np.load(path)

    def _state(self, stage: Stage) -> dict | None:
        path = self.work / f"{stage.name}.pt"
        return torch.load(path, weights_only=True) if path.exists() else None

    def _finished(self, stage: Stage) -> bool:
        state = self._state(stage)
        return state is not None and state["step"] >= stage.steps

    def _continue(self, model: nn.Module, before: Stage | None) -> None:
        if before is not None and (state := self._state(before)):
            model.load_state_dict(state["model"])

    def _run(self, stage: Stage, model: nn.Module, step, examine) -> None:
        """Train one stage from where it stands, saving and logging on the way."""
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizers = make_optimizers(model, stage.rate, muon=stage.muon)
        state = self._state(stage)
        if state:
            model.load_state_dict(state["model"])
            for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(kept)
        start = state["step"] if state else 0
        spent, began = (state["seconds"] if state else 0.0), time.perf_counter()
        columns = (TextColumn(stage.name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
        with Progress(*columns) as bar:
            task = bar.add_task(stage.name, total=stage.steps, completed=start, note="")
            for self.at in range(start, stage.steps):
                rng = random.Random(f"{self.seed} {stage.name} {self.at}")
                rate = stage.rate * language.cosine(self.at, stage.horizon, min(50, stage.steps // 8))
                loss, parts = step(rng)
                model.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(trained, 1.0)
                for optimizer in optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = rate
                    optimizer.step()
                seconds, done = spent + time.perf_counter() - began, self.at + 1
                if done % SAVE_EVERY == 0 or done == stage.steps:
                    parts |= examine()
                    kept = [optimizer.state_dict() for optimizer in optimizers]
                    state = {"model": model.state_dict(), "optimizers": kept, "step": done, "seconds": seconds}
                    torch.save(state, self.work / f"{stage.name}.tmp")
                    (self.work / f"{stage.name}.tmp").replace(self.work / f"{stage.name}.pt")
                if done % LOG_EVERY == 0:
                    line = {"stage": stage.name, "step": done, "seconds": round(seconds, 1)}
                    line |= {name: round(value, 4) for name, value in parts.items()}
                    with (self.work / "log.jsonl").open("a") as log:
                        log.write(json.dumps(line) + "\n")
                bar.update(task, advance=1, note=f"loss {loss.item():.3f}")


def make_optimizers(model: nn.Module, rate: float, *, muon: bool) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon for the matrices inside the language model's layers and AdamW for the rest."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    inner = [p for name, p in named if muon and "language_model.layers" in name and p.ndim == 2]
    outer = [p for _, p in named if not any(p is q for q in inner)]
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(outer, lr=rate, betas=(0.9, 0.98), weight_decay=0.02)]
    if inner:
        found.append(torch.optim.Muon(inner, lr=rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"))
    return found


def main() -> None:
    """Parse the options and train or export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/mini"), help="weights, features and log in the making")
    parser.add_argument("--scenes", type=int, default=8000, help="training scenes for the language model")
    parser.add_argument("--crowded", type=int, default=6000, help="training scenes for the tower")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="compile the language model's layers (needs a C++ compiler)")
    parser.add_argument("--export", action="store_true", help="only write the checkpoint from the work folder")
    options = parser.parse_args()
    trainer = Trainer(options.work, options.scenes, options.crowded, options.seed, options.compile)
    if not options.export:
        trainer.train_tower()
        trainer.train_language()
    trainer.export()


if __name__ == "__main__":
    main()
