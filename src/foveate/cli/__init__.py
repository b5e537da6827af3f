"""The command ``foveate``: parsing and printing only. A command imports torch when it needs it, and not before."""

import os
import signal
from typing import TYPE_CHECKING, Any

from foveate.cli.line import STOPPED, one_line
from foveate.lazy import lazy

if TYPE_CHECKING:
    from foveate.cli.commands import app

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of the command."""
    signals: list[int] = []

    def stop(number: int, frame: Any) -> None:
        signals.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)
    try:
        with one_line(unexpected=True, signals=signals):
            from foveate.cli.commands import app

            app()
    except SystemExit as end:
        if end.code == STOPPED:
            # Python would die of the signal where that came in code made by exec, as a dataclass's is.
            os._exit(STOPPED)
        raise


lazy(__name__, {"app": "commands"})
