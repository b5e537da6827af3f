"""A running vLLM server under load: with and without pruning, the same requests, round by round."""

from foveate.bench.serve.benchmark import (
    BUDGETS,
    CONCURRENCY,
    IMAGES,
    METHODS,
    NEW_TOKENS,
    QUESTIONS,
    ROUNDS,
    SIZE,
    Benchmark,
)
from foveate.bench.serve.documents import check_documents, write_documents
from foveate.bench.serve.server import TIMEOUT, Server
from foveate.bench.serve.tables import context_line, serve_table

__all__ = [
    "BUDGETS",
    "CONCURRENCY",
    "IMAGES",
    "METHODS",
    "NEW_TOKENS",
    "QUESTIONS",
    "ROUNDS",
    "SIZE",
    "TIMEOUT",
    "Benchmark",
    "Server",
    "check_documents",
    "context_line",
    "serve_table",
    "write_documents",
]
