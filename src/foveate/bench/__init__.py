"""Speed and quality of the methods, on one question and on many."""

from foveate.bench.answers import Answer, ask
from foveate.bench.arm import ALL, Arm, all_tokens, parse_arms
from foveate.bench.checkpoint import MINI, load, read_image, requests
from foveate.bench.evaluation import Evaluation, evaluate
from foveate.bench.machine import machine, versions
from foveate.bench.report import as_answers, as_markdown, as_results, context
from foveate.bench.tables import answers_table, describe_methods, methods_table, models_table, results_table

__all__ = [
    "ALL",
    "MINI",
    "Answer",
    "Arm",
    "Evaluation",
    "all_tokens",
    "answers_table",
    "as_answers",
    "as_markdown",
    "as_results",
    "ask",
    "context",
    "describe_methods",
    "evaluate",
    "load",
    "machine",
    "methods_table",
    "models_table",
    "parse_arms",
    "read_image",
    "requests",
    "results_table",
    "versions",
]
