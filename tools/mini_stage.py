"""One stretch of training: its settings, its loop, and what it leaves in the work folder."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

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
    extra: int = 0  # language model: random patches per cell beside the first; 15 is all
    questions: int = 0  # language model: questions behind each image
    muon: bool = False
    words: bool = False  # language model: sees the words for what patches show, not the patches
    rehearse: int = 0  # language model: every so many steps are as if with words and shuffled names, 0 for none
    fixed: bool = False  # language model: the projector stays as it is
    shuffled: bool = False  # language model, with words: colours, shapes and letters trade names in every scene

    @property
    def logged(self) -> range:
        """The steps whose numbers are worth more work, counted from 0."""
        return range(LOG_EVERY - 1, self.steps, LOG_EVERY)


Step = Callable[[int, random.Random], tuple[Tensor, dict[str, float]]]  # step number -> loss, numbers for the log
Examine = Callable[[], dict[str, float]]


class Work:
    """The work folder: weights, optimizers and log of every stage."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        folder.mkdir(parents=True, exist_ok=True)

    def state(self, stage: Stage) -> dict[str, Any] | None:
        """What a stage last saved, if anything."""
        path = self.folder / f"{stage.name}.pt"
        return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None

    def save(self, stage: Stage, state: dict[str, Any]) -> None:
        """Replace what a stage last saved, in one step."""
        torch.save(state, self.folder / f"{stage.name}.tmp")
        (self.folder / f"{stage.name}.tmp").replace(self.folder / f"{stage.name}.pt")

    def newest(self, stages: tuple[Stage, ...]) -> tuple[str, dict[str, Any]]:
        """Name and state of the furthest stage begun.

        Raises:
            FileNotFoundError: none has saved anything yet.
        """
        for stage in reversed(stages):
            if state := self.state(stage):
                return stage.name, state
        raise FileNotFoundError(f"nothing trained in {self.folder} yet")

    def log(self, line: dict[str, Any]) -> None:
        """Append to log.jsonl."""
        rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in line.items()}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(rounded) + "\n")

    def run(self, stage: Stage, model: nn.Module, step: Step, examine: Examine) -> None:
        """Train one stage from where it stands, saving and logging on the way."""
        optimizers = make_optimizers(model, stage.rate, muon=stage.muon)
        state = self.state(stage) or {"step": 0, "seconds": 0.0}
        if "model" in state:
            model.load_state_dict(state["model"])
            for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(kept)
        began = time.perf_counter() - state["seconds"]
        columns = (TextColumn(stage.name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[note]}")) as bar:
            task = bar.add_task(stage.name, total=stage.steps, completed=state["step"], note="")
            for at in range(state["step"], stage.steps):
                loss, numbers = step(at, random.Random(f"{self.seed} {stage.name} {at}"))
                _update(model, optimizers, loss, stage.rate * cosine(at, stage.horizon, min(50, stage.steps // 8)))
                done, seconds = at + 1, time.perf_counter() - began
                if done % SAVE_EVERY == 0 or done == stage.steps:
                    numbers |= examine()
                    kept = [optimizer.state_dict() for optimizer in optimizers]
                    weights = model.state_dict()
                    self.save(stage, {"model": weights, "optimizers": kept, "step": done, "seconds": seconds})
                if at in stage.logged:
                    self.log({"stage": stage.name, "step": done, "seconds": seconds} | numbers)
                bar.update(task, advance=1, note=f"loss {loss.item():.3f}")


def make_optimizers(model: nn.Module, rate: float, *, muon: bool) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon for the matrices inside the layers and AdamW for the rest."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    inside = [muon and ".layers." in name and p.ndim == 2 for name, p in named]
    inner = [p for (_, p), within in zip(named, inside, strict=True) if within]
    outer = [p for (_, p), within in zip(named, inside, strict=True) if not within]
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(outer, lr=rate, betas=(0.9, 0.98), weight_decay=0.02)]
    if inner:
        found.append(torch.optim.Muon(inner, lr=rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"))
    return found


def cosine(step: int, steps: int, warm: int) -> float:
    """Learning-rate factor: linear warm-up, then a cosine down to 2 %."""
    return min(1.0, (step + 1) / warm) * (0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, step / steps))))


def _update(model: nn.Module, optimizers: list[torch.optim.Optimizer], loss: Tensor, rate: float) -> None:
    model.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
