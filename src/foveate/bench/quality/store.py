"""The results of a run, kept as JSON lines: the settings first, then one line per arm and batch of questions."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from foveate.bench.defaults import Quality
from foveate.bench.lines import add_line, read_lines

FILE = Quality.FILE

Key = tuple[str, str, int | float]


@dataclass(frozen=True)
class Batch:
    """What one arm did with a batch of questions.

    Attributes:
        method: the method with all its options, or ``none``.
        positions: its position ids.
        keep: the budget as asked for.
        tokens: the visual tokens that went to the language model, per question.
        questions: their ids.
        skills: what each tests.
        right: whether each answer is right.
        energy: per question, the share of the features' energy outside the span of the tokens handed on.
        answers: what was answered.
        seconds: wall-clock of this batch: generation, and what of selection no larger budget had done before.
    """

    method: str
    positions: str
    keep: int | float
    tokens: list[int]
    questions: list[str]
    skills: list[str]
    right: list[bool]
    energy: list[float]
    answers: list[str]
    seconds: float

    def __post_init__(self) -> None:
        lists = (self.tokens, self.questions, self.skills, self.right, self.energy, self.answers)
        if len({len(values) for values in lists}) != 1:
            raise ValueError("lists of several lengths")

    @property
    def key(self) -> Key:
        """Of the arm, as `foveate.bench.Arm.key`."""
        return self.method, self.positions, self.keep


@dataclass
class Store:
    """Batches by arm and question; on disk too where it has a file.

    Attributes:
        settings: what the answers depend on besides the arm and the question.
        path: a file, or None.
        batches: all that is known.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    batches: list[Batch] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path | None, settings: dict[str, Any]) -> "Store":
        """What the folder's file holds; folder and file are made if there are none.

        A last line that an interrupt cut is dropped.

        Raises:
            InvalidInputs: it cannot be written, holds something else, or was made with other settings.
        """
        if folder is None:
            return cls(settings)
        path = folder / FILE
        return cls(settings, path, read_lines(path, settings, lambda entry: Batch(**entry)))

    def add(self, batch: Batch) -> None:
        """Keep a batch, on disk at once.

        Raises:
            InvalidInputs: it cannot be written.
        """
        self.batches.append(batch)
        if self.path is not None:
            add_line(self.path, asdict(batch))

    def done(self) -> dict[Key, set[str]]:
        """The ids of the questions that each arm has answered."""
        ids: dict[Key, set[str]] = {}
        for batch in self.batches:
            ids.setdefault(batch.key, set()).update(batch.questions)
        return ids
