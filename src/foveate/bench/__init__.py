"""Speed and quality of the methods, on one question and on many."""

from typing import TYPE_CHECKING

from foveate.lazy import lazy

if TYPE_CHECKING:
    from foveate.bench import estimate, quality, serve, speed
    from foveate.bench.answers import Answer, as_answers, ask
    from foveate.bench.arm import ALL, Arm, all_tokens, parse_arms
    from foveate.bench.checkpoint import check_length, load, requests
    from foveate.bench.defaults import MINI
    from foveate.bench.documents import check_documents
    from foveate.bench.lines import locked
    from foveate.bench.machine import machine, versions
    from foveate.bench.tables import answers_table, models_table, quality_tables

__all__ = [
    "ALL",
    "MINI",
    "Answer",
    "Arm",
    "all_tokens",
    "answers_table",
    "as_answers",
    "ask",
    "check_documents",
    "check_length",
    "estimate",
    "load",
    "locked",
    "machine",
    "models_table",
    "parse_arms",
    "quality",
    "quality_tables",
    "requests",
    "serve",
    "speed",
    "versions",
]

_HOMES = {
    "": ("estimate", "quality", "serve", "speed"),
    "answers": ("Answer", "as_answers", "ask"),
    "arm": ("ALL", "Arm", "all_tokens", "parse_arms"),
    "checkpoint": ("check_length", "load", "requests"),
    "defaults": ("MINI",),
    "documents": ("check_documents",),
    "lines": ("locked",),
    "machine": ("machine", "versions"),
    "tables": ("answers_table", "models_table", "quality_tables"),
}
lazy(__name__, {name: home for home, names in _HOMES.items() for name in names})
