"""Prints the lowest versions that pyproject.toml allows of what the package uses, as lines `name==version`."""

import tomllib
from pathlib import Path

EXTRAS = ("nouns", "plot")


def floors(project):
    """The lines, of the dependencies and of the extras that are installed beside them."""
    extras = project["optional-dependencies"]
    allowed = [*project["dependencies"], *(line for extra in EXTRAS for line in extras[extra])]
    return [line.replace(">=", "==") for line in allowed]


if __name__ == "__main__":
    print(*floors(tomllib.loads(Path("pyproject.toml").read_text())["project"]), sep="\n")
