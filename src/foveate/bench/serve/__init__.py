"""A running vLLM server under load: with and without pruning, the same requests, round by round."""

from foveate.bench.serve.benchmark import Benchmark
from foveate.bench.serve.documents import write_documents
from foveate.bench.serve.server import Server
from foveate.bench.serve.tables import context_line, serve_table

__all__ = ["Benchmark", "Server", "context_line", "serve_table", "write_documents"]
