"""Quality: accuracy of methods, budgets and variants on the same questions, with paired intervals."""

from foveate.bench.quality.benchmark import Benchmark
from foveate.bench.quality.documents import write_documents, write_summary
from foveate.bench.quality.markdown import context_line

__all__ = [
    "Benchmark",
    "context_line",
    "write_documents",
    "write_summary",
]
