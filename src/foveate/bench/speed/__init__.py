"""Speed: seconds, memory and cache of methods beside stock, in the same process and round by round."""

from foveate.bench.speed.benchmark import BATCHES, NEW_TOKENS, REPEATS, WARMUP, Benchmark
from foveate.bench.speed.contestants import BUDGETS, METHODS
from foveate.bench.speed.documents import check_documents, write_documents
from foveate.bench.speed.presets import PRESETS
from foveate.bench.speed.subject import ATTENTIONS, DTYPES, TEXT
from foveate.bench.speed.tables import context_line, speed_tables

__all__ = [
    "ATTENTIONS",
    "BATCHES",
    "BUDGETS",
    "DTYPES",
    "METHODS",
    "NEW_TOKENS",
    "PRESETS",
    "REPEATS",
    "TEXT",
    "WARMUP",
    "Benchmark",
    "check_documents",
    "context_line",
    "speed_tables",
    "write_documents",
]
