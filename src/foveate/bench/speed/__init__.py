"""Speed: seconds, memory and cache of methods beside stock, in the same process and round by round."""

from foveate.bench.speed.benchmark import Benchmark
from foveate.bench.speed.documents import write_documents
from foveate.bench.speed.tables import context_line, speed_tables

__all__ = ["Benchmark", "context_line", "speed_tables", "write_documents"]
