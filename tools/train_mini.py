"""Train mini from nothing: the CLIP pair, then the language model, then export. Stop and start again at will.

python tools/train_mini.py                 # train (resumes) and export: two to three hours on two cores
python tools/train_mini.py --export        # write what is trained so far into the package
"""

from __future__ import annotations

import argparse
import random
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

import mini_data as data
import mini_language as language
import mini_tower as tower
from foveate.mini import PATH
from foveate.mini.exam import exam
from foveate.mini.phrases import caption
from foveate.mini.questions import SKILLS
from foveate.mini.scenes import GRID
from mini_exercises import exercise
from mini_export import build_processor, export, llava_config
from mini_stage import Stage, Work
from mini_words import build_tokenizer

# Skills that come late come quickly when most questions ask for them.
PLACES, SIDES, COUNTS = ("location", "find"), ("relation", "next"), ("counting", "comparison", "existence")
TOWER = (
    Stage("crops", steps=800, batch=64, rate=1.5e-3, horizon=2400, cells=3),
    Stage("whole", steps=160, batch=24, rate=8e-4, horizon=160, cells=6),
)
LANGUAGE = (
    Stage("align", steps=300, batch=64, rate=5e-3, horizon=300, extra=1),
    Stage("centres", 450, 24, rate=2e-3, horizon=1400, extra=0, questions=14, muon=True, blend=(0.0, 1.2)),
    Stage("coarse", 150, 24, rate=1.5e-3, horizon=600, extra=3, questions=14, muon=True, blend=(1.0, 1.3)),
    Stage("long", 500, 24, rate=2e-3, horizon=650, extra=1, questions=14, muon=True, blend=(1.0, 1.6)),
    Stage("sharp", 150, 24, rate=1.5e-3, horizon=300, extra=1, questions=14, muon=True, blend=(1.5, 1.5)),
    Stage("places", 100, 24, 2.5e-3, 300, extra=1, questions=14, muon=True, blend=(1.2, 1.2), focus=PLACES),
    Stage("relate", 80, 24, 2e-3, 300, extra=1, questions=14, muon=True, blend=(1.2, 1.2), focus=SIDES),
    Stage("count", 100, 24, 2e-3, 300, extra=1, questions=14, muon=True, blend=(1.2, 1.2), focus=COUNTS),
    Stage("fine", 200, 12, rate=1.2e-3, horizon=240, extra=15, questions=24, muon=True, blend=(3.0, 3.0)),
)
CROWDED, PLAIN, DEV = 6000, 8000, 256  # scenes for the tower, for the language model, for watching


class Trainer:
    """Trains stage by stage, each from the weights of the one before."""

    def __init__(self, folder: Path, seed: int, compiled: bool) -> None:
        self.work, self.seed, self.compiled = Work(folder, seed), seed, compiled
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(seed)
        self.clip_words, self.words = build_tokenizers(seed)

    def train_tower(self) -> None:
        """The CLIP pair."""
        pair = self._new_pair().to(self.device)
        for before, stage in zip((None, *TOWER), TOWER, strict=False):
            if self._begin(stage, before, pair):
                make = data.crowded_scene if stage.cells < GRID else data.mixed_scene
                scenes = [make(index) for index in range(CROWDED)]
                images, labels = data.render_all(scenes), np.stack([data.patch_labels(scene) for scene in scenes])
                shelf = tower.Shelf(scenes, images, labels)
                self.work.run(stage, pair, tower.make_step(stage, pair, shelf, self.clip_words, self.device), dict)

    def train_language(self) -> None:
        """The projector and the language model, over the tower's features, which are computed once."""
        pair = self._trained_pair().to(self.device)
        shelf = self._shelf(pair)
        dev = exam(DEV, seed=self.seed, split="dev")
        watch = language.Watch(pair, dev, self.words, self.device)
        lexicon = language.Lexicon(self.words)
        model = self._new_model(pair).to(self.device)
        if self.compiled:
            for layer in model.model.language_model.layers:
                layer.forward = torch.compile(layer.forward, dynamic=True)
        for before, stage in zip((None, *LANGUAGE), LANGUAGE, strict=False):
            if self._begin(stage, before, model):
                step = language.make_step(stage, model, shelf, lexicon, self.words, self.device)
                self.work.run(stage, model, step, partial(watch.accuracy, model, stage))

    def export(self) -> None:
        """Write the newest language model and its pair into the package."""
        pair = self._trained_pair()
        model = self._new_model(pair)
        name, state = self.work.newest(LANGUAGE)
        model.load_state_dict(state["model"])
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

    def _new_model(self, pair: tower.Pair) -> LlavaForConditionalGeneration:
        """A LLaVA model over the pair's frozen tower, its language model untrained."""
        model = LlavaForConditionalGeneration(llava_config(pair.clip, self.words, layers=5, width=192))
        model.model.vision_tower.load_state_dict(pair.clip.vision_model.state_dict())
        model.model.vision_tower.requires_grad_(False)
        nn.init.normal_(model.get_input_embeddings().weight, std=0.1)
        for linear in (model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        return model

    def _shelf(self, pair: tower.Pair) -> language.Shelf:
        """Training scenes, their features (kept on disk between runs) and labels."""
        scenes = [data.plain_scene(index) for index in range(PLAIN)]
        path = self.work.folder / f"features-{PLAIN}.npy"
        if not path.exists():
            np.save(path, language.cache_features(pair, data.render_all(scenes), self.device))
        return language.Shelf(scenes, np.load(path), np.stack([data.patch_labels(scene) for scene in scenes]))


def build_tokenizers(seed: int) -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    """CLIP's, from captions, and the language model's, from questions and answers."""
    rng = random.Random(seed)
    crowds = [data.crowded_scene(index) for index in range(6000)]
    captions = [caption(scene.things, rng) for scene in crowds] + ["an image of nothing"] * 3
    prompts = []
    for index in range(3000):
        scene = data.plain_scene(index)
        found = [exercise(scene, rng, kind) for kind in ("list", "cell", "next", *SKILLS)]
        prompts += [f"USER: \n{pair[0]} ASSISTANT: {pair[1]}" for pair in found if pair]
    return (
        build_tokenizer(captions, 700, lowercase=True, eos=True),
        build_tokenizer(prompts, 800, lowercase=False, eos=False),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/mini"), help="weights, features and log")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="compile the layers: faster, needs a C++ compiler")
    parser.add_argument("--export", action="store_true", help="only write the checkpoint from the work folder")
    options = parser.parse_args()
    trainer = Trainer(options.work, options.seed, options.compile)
    if not options.export:
        trainer.train_tower()
        trainer.train_language()
    trainer.export()


if __name__ == "__main__":
    main()
