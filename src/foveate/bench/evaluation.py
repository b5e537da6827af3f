"""Accuracy on freshly drawn scenes, arm by arm; each arm goes to disk as soon as it is done."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from foveate.bench.arm import Arm
from foveate.bench.checkpoint import requests
from foveate.bench.machine import code, versions
from foveate.errors import InvalidInputs, InvalidOption
from foveate.mini.exam import exam
from foveate.mini.questions import correct
from foveate.mini.scenes import draw
from foveate.prune import prune
from foveate.question import nouns_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH = 16
EXAMINED = ("fresh", "dev", "test")
ANSWER_TOKENS = 4  # answers are one word

Progress = Callable[[Arm, int], None]  # is told how many more questions an arm has answered


@dataclass(frozen=True)
class Evaluation:
    """The outcome of one arm.

    Attributes:
        name: the method as the user wrote it.
        method: the method with all its options.
        keep: the budget as the user wrote it; for all tokens, their number.
        tokens: visual tokens kept per image.
        skills: the skill of each question.
        right: whether each was answered rightly, in the same order.
        seconds: wall-clock of the whole arm.
        settings: what else the outcome depends on; a stored one counts only where these are the same.
    """

    name: str
    method: str
    keep: int | float
    tokens: int
    skills: list[str]
    right: list[bool]
    seconds: float
    settings: dict[str, Any]


def evaluate(
    model: "PreTrainedModel",
    processor: Any,
    arms: Sequence[Arm],
    *,
    questions: int,
    seed: int,
    split: str = "fresh",
    store: Path | None = None,
    progress: Progress = lambda arm, answered: None,
) -> Iterator[Evaluation]:
    """Each arm's outcome, in order, each computed when it is asked for; all arms get the same questions.

    Args:
        model: any supported model; the bundled one is the one that knows these scenes.
        processor: its processor.
        arms: what to compare.
        questions: how many, the skills in turn, each about a scene of its own.
        seed: of scenes and questions; 0 or more.
        split: ``fresh`` scenes, or ``test`` scenes with combinations of attributes that training never showed.
        store: a file of one JSON object per line. Arms found in it are not run again, others are appended.
        progress: is told how many more questions an arm has answered.

    Raises:
        InvalidOption: ``questions``, ``seed`` or ``split``.
        InvalidInputs: the store cannot be read or written, or holds something else.
    """
    if questions < 1:
        raise InvalidOption(f"questions={questions}: allowed is 1 or more")
    if seed < 0:
        raise InvalidOption(f"seed={seed}: allowed is 0 or more")
    if split not in EXAMINED:
        raise InvalidOption(f"split={split!r}: allowed are {', '.join(EXAMINED)}")
    settings = {
        "model": fingerprint(model),
        "questions": questions,
        "seed": seed,
        "split": split,
        "versions": versions(),
        "code": code(),
        "tagger": nouns_of("dog").tagger,
        "device": str(model.device),
    }
    stored = _read(store) if store else []
    return _outcomes(model, processor, arms, settings, stored, store, progress)


def _outcomes(
    model: "PreTrainedModel",
    processor: Any,
    arms: Sequence[Arm],
    settings: dict[str, Any],
    stored: Sequence[Evaluation],
    store: Path | None,
    progress: Progress,
) -> Iterator[Evaluation]:
    items = exam(settings["questions"], settings["seed"], settings["split"])
    for arm in arms:
        found = next((known for known in stored if _is_of(known, arm, settings)), None)
        if found:
            progress(arm, len(items))
        else:
            found = _run(model, processor, arm, items, settings, progress)
            if store:
                with store.open("a") as file:
                    file.write(json.dumps(asdict(found)) + "\n")
        yield found


def fingerprint(model: "PreTrainedModel") -> str:
    """Twelve hexadecimal digits that change when a weight does."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


@torch.inference_mode()
def _run(
    model: "PreTrainedModel",
    processor: Any,
    arm: Arm,
    items: Sequence[Any],
    settings: dict[str, Any],
    progress: Progress,
) -> Evaluation:
    start = time.perf_counter()
    right: list[bool] = []
    tokens, total = 0, 0
    for first in range(0, len(items), BATCH):
        scenes, asked = zip(*items[first : first + BATCH], strict=True)
        inputs = requests(processor, [draw(scene) for scene in scenes], [question.text for question in asked])
        pruned = prune(model, inputs.to(model.device), arm.method, keep=arm.budget, processor=processor)
        output = model.generate(**pruned, max_new_tokens=ANSWER_TOKENS, do_sample=False)
        new = output[:, pruned["input_ids"].shape[1] :]
        answers = processor.batch_decode(new, skip_special_tokens=True)
        right += [correct(answer, question) for answer, question in zip(answers, asked, strict=True)]
        tokens, total = pruned.report.tokens_after[0], pruned.report.tokens_before[0]
        progress(arm, len(asked))
    return Evaluation(
        name=arm.name,
        method=repr(arm.method),
        keep=total if arm.keeps_all else arm.budget.keep,
        tokens=tokens,
        skills=[question.skill for _, question in items],
        right=right,
        seconds=time.perf_counter() - start,
        settings=settings,
    )


def _is_of(known: Evaluation, arm: Arm, settings: dict[str, Any]) -> bool:
    same_arm = known.name == arm.name and known.method == repr(arm.method)
    return same_arm and (arm.keeps_all or known.keep == arm.budget.keep) and known.settings == settings


def _read(store: Path) -> list[Evaluation]:
    """What the store holds; the file is made if there is none. A last line that an interrupt cut is dropped."""
    try:
        with store.open("a+") as file:
            file.seek(0)
            lines = file.readlines()
            if lines and not lines[-1].endswith("\n"):
                lines.pop()
                file.truncate(sum(len(line.encode()) for line in lines))
        return [Evaluation(**json.loads(line)) for line in lines if line.strip()]
    except OSError as error:
        raise InvalidInputs(f"results {str(store)!r}: cannot be written ({error.strerror})") from error
    except (ValueError, TypeError) as error:
        raise InvalidInputs(f"results {str(store)!r}: not a file of earlier results") from error
