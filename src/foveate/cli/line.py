"""Every error of the command is one line on standard error, without a traceback."""

import errno
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from foveate.errors import FoveateError, first_line

USAGE, FAILED, STOPPED = 2, 1, 130  # exit codes: a bad argument or input, anything else, Ctrl-C
TRACEBACK = "FOVEATE_TRACEBACK"  # set to anything: unexpected errors show where they come from


@contextmanager
def one_line(unexpected: bool = False, signals: Sequence[int] = ()) -> Iterator[None]:
    """End in one line and an exit code where the block raises what may be expected.

    Args:
        unexpected: whether any other error ends so, too.
        signals: holds those that came; an unexpected error behind one is what a library made of it.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # closed by the caller
                sys.stdout.flush()  # while it can still be told that nothing more can be written
    except BaseException as error:
        told = _told(error) or (_unexpected(error, signals) if unexpected else None)
        if told is None:
            raise
        line, code = told
    else:
        return
    if line:
        print(f"foveate: {' '.join(line.split())}", file=sys.stderr, flush=True)
    sys.exit(code)


def _told(error: BaseException) -> tuple[str, int] | None:
    """The line and the exit code of an error that may be expected; None for others."""
    if isinstance(error, SystemExit):  # told already
        return None
    stopped = _interrupt(error)
    if stopped is not None:
        return str(stopped) or "stopped", STOPPED
    if isinstance(error, FoveateError):
        return str(error), USAGE
    if hasattr(error, "format_message"):  # click's errors of a command line, whose module typer hides
        return error.format_message(), USAGE
    if isinstance(error, OSError):
        return _unwritten(error)
    return None


def _interrupt(error: BaseException | None) -> KeyboardInterrupt | None:
    """The Ctrl-C behind an error: while modules load, Python may make another error of it."""
    if error is None or isinstance(error, KeyboardInterrupt):
        return error
    return _interrupt(error.__cause__) or _interrupt(error.__context__)


def _unwritten(error: OSError) -> tuple[str, int]:
    closed = isinstance(error, BrokenPipeError)  # as by `| head`: whoever read has gone
    if closed or error.errno == errno.ENOSPC:
        # What is left in the buffer would be tried again, and fail again, when Python ends.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    if closed:
        return "", FAILED
    what = f"{error.filename!r}: {error.strerror}" if error.filename else f"output cannot be written ({error})"
    return what, FAILED


def _unexpected(error: BaseException, signals: Sequence[int]) -> tuple[str, int] | None:
    if signals and not isinstance(error, SystemExit):
        return "stopped", STOPPED
    if not isinstance(error, Exception) or os.environ.get(TRACEBACK):
        return None
    return f"unexpected {type(error).__name__}: {first_line(error)} ({TRACEBACK}=1 shows where)", FAILED
