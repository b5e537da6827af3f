"""``python -m foveate``."""

from foveate.cli import main

main()
