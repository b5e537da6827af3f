"""Options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
ModelOption = Annotated[str, typer.Option(help="Checkpoint path or id; mini is the bundled one.")]
KeepOption = Annotated[str, typer.Option(help="Budgets, such as 192,64 or 0.11.")]
OutOption = Annotated[
    Path | None, typer.Option(help="Keep results in this folder; a stopped run goes on from there.")
]
DocsOption = Annotated[
    Path | None, typer.Option(help="Write the page and its plots into this folder, which is made.")
]
