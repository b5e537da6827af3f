"""The command ``foveate``: parsing and printing only. A command imports torch when it needs it, and not before."""

from typing import TYPE_CHECKING

from foveate.cli.line import one_line
from foveate.lazy import lazy

if TYPE_CHECKING:
    from foveate.cli.commands import app

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of the command."""
    with one_line(unexpected=True):
        from foveate.cli.commands import app

        app()


lazy(__name__, {"app": "commands"})
