"""Quality: accuracy of methods, budgets and variants on the same questions, with paired intervals."""

from foveate.bench.quality.benchmark import Benchmark
from foveate.bench.quality.documents import check_documents, write_documents, write_summary
from foveate.bench.quality.markdown import context_line
from foveate.bench.quality.suites import BUDGETS, DEFAULT, EVERY, SUITES

__all__ = [
    "BUDGETS",
    "DEFAULT",
    "EVERY",
    "SUITES",
    "Benchmark",
    "check_documents",
    "context_line",
    "write_documents",
    "write_summary",
]
