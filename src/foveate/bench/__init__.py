"""Speed and quality of the methods, on one question and on many."""

from foveate.bench import quality, serve, speed
from foveate.bench.answers import Answer, as_answers, ask
from foveate.bench.arm import ALL, Arm, all_tokens, parse_arms
from foveate.bench.checkpoint import MINI, load, requests
from foveate.bench.machine import machine, versions
from foveate.bench.tables import answers_table, describe_methods, methods_table, models_table, quality_tables

__all__ = [
    "ALL",
    "MINI",
    "Answer",
    "Arm",
    "all_tokens",
    "answers_table",
    "as_answers",
    "ask",
    "describe_methods",
    "load",
    "machine",
    "methods_table",
    "models_table",
    "parse_arms",
    "quality",
    "quality_tables",
    "requests",
    "serve",
    "speed",
    "versions",
]
