"""What runs, for the one who waits: a bar on a terminal, elsewhere a line every ten seconds."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from foveate.bench.lines import locked

SILENCE = 10.0  # seconds between two lines


class Telling:
    """What is being done, and how much of it is done.

    Attributes:
        what: in words.
        done: of ``total``.
        total: None while it is not known.
    """

    def __init__(self, bar: Progress | None) -> None:
        self.what = "starting"
        self.done = 0
        self.total: int | None = None
        self._bar = bar
        self._task = None if bar is None else bar.add_task(self.what, total=None)

    def __call__(self, what: str, more: int = 0, total: int | None = None) -> None:
        """Something else runs, ``more`` is done, or it became known how much there is to do."""
        self.what, self.done = what, self.done + more
        self.total = self.total if total is None else total
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=what, completed=self.done, total=self.total)

    def line(self, seconds: float) -> str:
        """For a log."""
        counted = "" if self.total is None else f", {self.done} of {self.total}"
        return f"foveate: {self.what}{counted}, {seconds:.0f} s so far"


@contextmanager
def telling() -> Iterator[Telling]:
    """Tell how far a command is until the block ends."""
    if sys.stderr.isatty():
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        with bar:
            yield Telling(bar)
        return
    told, end = Telling(None), Event()
    writer = Thread(target=_write_lines, args=(told, end), daemon=True)
    writer.start()
    try:
        yield told
    finally:
        end.set()


@contextmanager
def run_of(folder: Path | None, file: str) -> Iterator[Telling]:
    """A benchmark's run: no other writes to its folder meanwhile, and Ctrl-C says whether it can go on.

    Args:
        folder: where results are kept, or None.
        file: the results' name.

    Raises:
        InvalidInputs: as `locked`.
    """
    with locked(folder, file), telling() as told:
        try:
            yield told
        except KeyboardInterrupt as error:
            how = "the same command goes on" if folder else "nothing is kept without --out"
            raise KeyboardInterrupt(f"stopped; {how}") from error


def _write_lines(told: Telling, end: Event) -> None:
    start = time.monotonic()
    while not end.wait(SILENCE):
        print(told.line(time.monotonic() - start), file=sys.stderr, flush=True)
