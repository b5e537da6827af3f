"""The results of a run, as JSON lines: what each contestant needs, and the seconds of each of its passes."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from foveate.bench.defaults import Speed
from foveate.bench.lines import add_line, read_lines

Case = tuple[int, int]  # visual tokens per image, rows


@dataclass(frozen=True)
class Timed:
    """One timed pass.

    Attributes:
        tokens: visual tokens of an image, before pruning.
        batch: rows.
        contestant: its key.
        round: all contestants pass once in each.
        place: the how-many-th it was in that round.
        seconds: by stage.
        new_tokens: of each row.
        load: the machine's load average over a minute; None where there is none.
        commit: of the checkout, or None.
    """

    tokens: int
    batch: int
    contestant: str
    round: int
    place: int
    seconds: dict[str, float]
    new_tokens: int
    load: float | None
    commit: str | None


@dataclass(frozen=True)
class Weighed:
    """What one pass that is not timed needed.

    Attributes:
        tokens: as of `Timed`, like ``batch`` and ``contestant``.
        batch: rows.
        contestant: its key.
        memory: bytes at most in use above the weights and inputs; None: not measured.
        kv_bytes: of keys and values at the end, over all layers.
        prompt: columns of the prompt that went to the language model.
        tokens_per_layer: visual tokens of the first image, by layer.
        attention: the backends that were in force.
        dtype: of the weights.
        decided: what pruned, with its ``auto`` options decided; None for stock.
        operations: that pruning launches beside the encoder; None for stock, and in results of older versions.
        reads: for which the host waits there; None likewise.
    """

    tokens: int
    batch: int
    contestant: str
    memory: int | None
    kv_bytes: int
    prompt: int
    tokens_per_layer: list[int]
    attention: str
    dtype: str
    decided: str | None
    operations: int | None = None
    reads: int | None = None


@dataclass
class Store:
    """All that is known; on disk too where it has a file.

    Attributes:
        settings: what the results depend on besides case and contestant.
        path: a file, or None.
        timed: by case, round and contestant; the latest counts.
        weighed: by case and contestant.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    timed: dict[tuple[Case, int, str], Timed] = field(default_factory=dict)
    weighed: dict[tuple[Case, str], Weighed] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path | None, settings: dict[str, Any]) -> "Store":
        """What the folder's file holds; folder and file are made if there are none.

        Raises:
            InvalidInputs: it cannot be written, holds something else, or was made with other settings.
        """
        store = cls(settings)
        if folder is None:
            return store
        path = folder / Speed.FILE
        for result in read_lines(path, settings, lambda line: (Timed if "round" in line else Weighed)(**line)):
            store._keep(result)
        store.path = path
        return store

    def add(self, result: Timed | Weighed) -> None:
        """Keep a result, on disk at once.

        Raises:
            InvalidInputs: it cannot be written.
        """
        self._keep(result)
        if self.path is not None:
            add_line(self.path, asdict(result))

    def rounds(self, case: Case, contestants: Iterable[str]) -> list[int]:
        """The rounds in which all of them passed."""
        keys = list(contestants)
        known = {number for own, number, _ in self.timed if own == case}
        return sorted(number for number in known if all((case, number, key) in self.timed for key in keys))

    def _keep(self, result: Timed | Weighed) -> None:
        case = (result.tokens, result.batch)
        if isinstance(result, Timed):
            self.timed[case, result.round, result.contestant] = result
        else:
            self.weighed[case, result.contestant] = result
