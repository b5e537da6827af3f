"""Train mini on: the CLIP pair, then the language model, then export. Stop and start again at will.

python tools/train_mini.py                 # train the weights in the package on, and export: hours on two cores
python tools/train_mini.py --export        # write what is trained so far into the package
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoTokenizer, CLIPModel, LlavaForConditionalGeneration, PreTrainedTokenizerFast

import mini_data as data
import mini_language as language
import mini_tower as tower
from foveate.mini import PATH
from foveate.mini.exam import exam
from foveate.mini.questions import SKILLS
from foveate.mini.scenes import GRID, Scene
from mini_exercises import AIDS, exercise
from mini_export import build_processor, export, llava_config
from mini_stage import Stage, Work
from mini_symbols import Symbols
from mini_words import build_tokenizer

TOWER = (
    Stage("crops", steps=700, batch=64, rate=1e-3, horizon=800, cells=2, muon=True),
    Stage("whole", steps=260, batch=24, rate=6e-4, horizon=260, cells=4, muon=True),
    Stage("again", steps=280, batch=24, rate=8e-4, horizon=280, cells=4, muon=True),
    Stage("apart", steps=220, batch=24, rate=8e-4, horizon=220, cells=4, muon=True),
    Stage("last", steps=160, batch=24, rate=7e-4, horizon=160, cells=4, muon=True),
    Stage("more", steps=170, batch=24, rate=7e-4, horizon=170, cells=4, muon=True),
)
LANGUAGE = (
    Stage("words", steps=500, batch=24, rate=1.5e-3, horizon=600, extra=0, questions=14, muon=True, words=True),
    Stage("names", 200, 24, rate=1e-3, horizon=350, extra=0, questions=14, muon=True, words=True, shuffled=True),
    Stage("align", steps=2000, batch=64, rate=3e-3, horizon=2000, extra=1),
    Stage("coarse", 200, 24, rate=8e-4, horizon=300, extra=3, questions=14, muon=True, rehearse=4),
    Stage("fine", 300, 8, rate=8e-4, horizon=300, extra=35, questions=20, muon=True, rehearse=6),
    Stage("realign", steps=1000, batch=64, rate=2e-3, horizon=1000, extra=1),
    Stage("refine", 110, 8, rate=5e-4, horizon=110, extra=35, questions=20, muon=True, rehearse=6),
    Stage("varied", 400, 8, rate=8e-4, horizon=400, extra=35, questions=20, muon=True, rehearse=6),
    Stage("reshaped", 300, 8, rate=7e-4, horizon=300, extra=35, questions=20, muon=True, rehearse=6),
    Stage("reread", steps=3000, batch=64, rate=2e-3, horizon=3000, extra=2),
    Stage("settle", 220, 8, rate=6e-4, horizon=220, extra=35, questions=20, muon=True, rehearse=6, fixed=True),
)
LAYERS, WIDTH = 5, 192
CROWDED, VARIED, DEV = 6000, 8000, 400  # scenes for the tower, for the language model, questions for watching
ALIGNED = range(40000, 44000)  # of the crowded scenes, those that the projector is aligned on


class Trainer:
    """Trains stage by stage, each from the weights of the one before."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.work, self.seed = Work(folder, seed), seed
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(seed)
        self.start = folder / "start"
        if not self.start.exists():
            shutil.copytree(PATH, self.start)
        self.clip_words = AutoTokenizer.from_pretrained(self.start / "clip")
        self.words = build_words(seed)

    def train_tower(self) -> None:
        """The CLIP pair."""
        pair = self._new_pair().to(self.device)
        pair.clip.load_state_dict(CLIPModel.from_pretrained(self.start / "clip", dtype=torch.float32).state_dict())
        for before, stage in zip((None, *TOWER), TOWER, strict=False):
            if self._begin(stage, before, pair):
                make = data.crowded_scene if stage.cells < GRID else data.mixed_scene
                first = TOWER.index(stage) * CROWDED  # scenes of its own for every stage
                scenes = [data.estranged(make(index), index) for index in range(first, first + CROWDED)]
                labels = np.stack([data.told_apart(scene) for scene in scenes])
                images = data.render_all(scenes)
                shelf = tower.Shelf(scenes, images, labels)
                self.work.run(stage, pair, tower.make_step(stage, pair, shelf, self.clip_words, self.device), dict)

    def train_language(self) -> None:
        """The language model from words, then the projector and both over the tower's features, computed once."""
        model = self._new_model().to(self.device)
        eyes = language.Eyes(model, Symbols(self.words, self.device), self.device)
        dev = exam(DEV, seed=self.seed, split="dev")
        crowds = [data.estranged(data.crowded_scene(index), index) for index in ALIGNED]
        shelves = [
            shelf_of("varied", [data.varied_scene(index) for index in range(VARIED)], data.patch_labels),
            shelf_of("estranged", crowds, data.told_apart),
            shelf_of("watched", [scene for scene, _ in dev], data.patch_labels),
        ]
        for before, stage in zip((None, *LANGUAGE), LANGUAGE, strict=False):
            if not self._begin(stage, before, model):
                continue
            if not stage.words and shelves[0].features is None:
                pair = self._trained_pair().to(self.device)
                shelves = [self._with_features(shelf, pair) for shelf in shelves]
            varied, estranged, watched_shelf = shelves
            model.model.multi_modal_projector.requires_grad_(not stage.fixed)
            watch = language.Watch(eyes, watched_shelf, [question for _, question in dev], self.words)
            shelf = varied if stage.questions else estranged
            step = language.make_step(stage, eyes, shelf, self.words, self.device)
            self.work.run(stage, model, step, partial(watch.accuracy, stage))

    def export(self) -> None:
        """Write the newest language model and its pair into the package."""
        pair, model = self._trained_pair(), self._new_model()
        name, state = self.work.newest(LANGUAGE)
        model.load_state_dict(state["model"])
        model.model.vision_tower.load_state_dict(pair.clip.vision_model.state_dict())
        size = export(PATH, model.eval(), build_processor(self.words), pair.clip, self.clip_words)
        print(f"stage {name}, step {state['step']}: {size / 1e6:.1f} MB")

    def _begin(self, stage: Stage, before: Stage | None, model: nn.Module) -> bool:
        """Whether there is anything left to do; if so, the model holds the weights of the stage before."""
        state = self.work.state(stage)
        if state and state["step"] >= stage.steps:
            return False
        if before and (done := self.work.state(before)):
            model.load_state_dict(done["model"])
        return True

    def _new_pair(self) -> tower.Pair:
        words = self.clip_words
        return tower.Pair(
            tower.clip_config(len(words), words.bos_token_id, words.eos_token_id, words.pad_token_id)
        )

    def _trained_pair(self) -> tower.Pair:
        """The finished pair, its weights rounded to the half precision they ship in."""
        pair, state = self._new_pair(), self.work.state(TOWER[-1])
        if state is None:
            raise FileNotFoundError("the tower is not trained yet")
        pair.load_state_dict(state["model"])
        pair.clip.half().float()
        return pair.eval().requires_grad_(False)

    def _new_model(self) -> LlavaForConditionalGeneration:
        """A LLaVA model: the language model it starts from, a new projector; the tower is put in at export."""
        begun = LlavaForConditionalGeneration.from_pretrained(self.start, dtype=torch.float32)
        model = LlavaForConditionalGeneration(llava_config(self._new_pair().clip, self.words, LAYERS, WIDTH))
        model.model.vision_tower.requires_grad_(False)
        model.model.language_model.layers.load_state_dict(begun.model.language_model.layers.state_dict())
        model.model.language_model.norm.load_state_dict(begun.model.language_model.norm.state_dict())
        known = AutoTokenizer.from_pretrained(self.start)
        old, new = begun.get_input_embeddings().weight.data, model.get_input_embeddings().weight.data
        for word, index in self.words.get_vocab().items():
            pieces = known(self.words.convert_tokens_to_string([word]), add_special_tokens=False)["input_ids"]
            new[index] = old[known.convert_tokens_to_ids(word)] if word in known.vocab else old[pieces].sum(0)
        for linear in (model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        return model

    def _with_features(self, shelf: language.Shelf, pair: tower.Pair) -> language.Shelf:
        """The shelf with the tower's features, which are kept on disk between runs."""
        path = self.work.folder / f"features-{shelf.name}-{digest_of(pair)}.npy"
        if not path.exists():
            unfinished = path.with_suffix(".tmp.npy")
            np.save(unfinished, language.cache_features(pair, data.render_all(shelf.scenes), self.device))
            unfinished.replace(path)
        return replace(shelf, features=np.load(path))


def shelf_of(name: str, scenes: list[Scene], read: Callable[[Scene], np.ndarray]) -> language.Shelf:
    """Scenes without features yet, and their patches' classes [n, 24, 24, 5]."""
    return language.Shelf(name, scenes, None, np.stack([read(scene) for scene in scenes]))


def digest_of(pair: tower.Pair) -> str:
    """Changes when the tower does."""
    weights = [weight.cpu().numpy().tobytes() for weight in pair.clip.vision_model.parameters()]
    return hashlib.sha256(b"".join(weights)).hexdigest()[:8]


def build_words(seed: int) -> PreTrainedTokenizerFast:
    """The language model's tokenizer, from questions and answers."""
    rng = random.Random(seed)
    prompts = []
    for index in range(3000):
        scene = data.plain_scene(index)
        found = [exercise(scene, rng, kind) for kind in (*AIDS, *SKILLS)]
        prompts += [f"USER: \n{pair[0]} ASSISTANT: {pair[1]}" for pair in found if pair]
    return build_tokenizer(prompts, 800, lowercase=False, eos=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/mini"), help="weights, features and log")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--export", action="store_true", help="only write the checkpoint from the work folder")
    options = parser.parse_args()
    trainer = Trainer(options.work, options.seed)
    if not options.export:
        trainer.train_tower()
        trainer.train_language()
    trainer.export()


if __name__ == "__main__":
    main()
