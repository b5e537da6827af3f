"""A server that speaks the OpenAI protocol, and vLLM's counters: the only file that talks to one."""

import asyncio
import json
import os
import re
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from importlib.util import find_spec
from typing import Any

from foveate.bench.defaults import Serve
from foveate.bench.web import address, opener
from foveate.errors import InvalidInputs, InvalidOption, first_line

# vLLM's counters, of tokens looked up and found: of prompts, and of what was made of images before the encoder.
COUNTERS = {
    "prefix": ("vllm:prefix_cache_queries", "vllm:prefix_cache_hits"),
    "images": ("vllm:mm_cache_queries", "vllm:mm_cache_hits"),
}


@dataclass(frozen=True)
class Answered:
    """One request.

    Attributes:
        first: seconds to the first token.
        total: seconds to the last one.
        prompt: tokens that the server counted in the prompt.
        new: tokens of the answer.
    """

    first: float
    total: float
    prompt: int
    new: int


@dataclass(frozen=True)
class Server:
    """Where it is, what it serves.

    Attributes:
        url: without ``/v1``.
        model: the name it serves the model under.
        version: of vLLM.
        timeout: seconds.
    """

    url: str
    model: str
    version: str
    timeout: float = Serve.TIMEOUT

    @classmethod
    def find(cls, url: str, timeout: float = Serve.TIMEOUT) -> "Server":
        """Ask a server who it is.

        Raises:
            InvalidOption: the openai client is not installed.
            InvalidInputs: nobody answers there, or somebody else.
        """
        if find_spec("openai") is None:
            raise InvalidOption("bench serve asks through the openai client: pip install openai")
        url = address(url)
        models, versions = _read(url, "/v1/models", timeout), _read(url, "/version", timeout)
        try:
            model, version = json.loads(models)["data"][0]["id"], json.loads(versions)["version"]
        except (ValueError, LookupError, TypeError) as error:
            raise InvalidInputs(f"server {url!r}: what answers there is no vLLM server") from error
        return cls(url, str(model), str(version), timeout)

    def counters(self) -> dict[str, int]:
        """Tokens looked up in a cache and found there, since the server was started.

        Raises:
            InvalidInputs: it is gone.
        """
        page = _read(self.url, "/metrics", self.timeout)
        return {name: _counter(page, name) for pair in COUNTERS.values() for name in pair}

    def answers(
        self, asked: Sequence[tuple[str, str]], options: dict[str, Any] | None, new_tokens: int, concurrency: int
    ) -> tuple[list[Answered], float]:
        """All answers, so many under way at any time, and the seconds from the first request to the last answer.

        Args:
            asked: data URL and question of each request.
            options: ``mm_processor_kwargs["foveate"]``; None for no pruning.
            new_tokens: length of every answer.
            concurrency: how many at any time.

        Raises:
            InvalidInputs: a request was refused or got lost, or its answer was cut.
        """
        return asyncio.run(self._answers(asked, options, new_tokens, concurrency))

    async def _answers(
        self, asked: Sequence[tuple[str, str]], options: dict[str, Any] | None, new_tokens: int, concurrency: int
    ) -> tuple[list[Answered], float]:
        import openai

        gate = asyncio.Semaphore(concurrency)
        async with openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key=_key(), timeout=self.timeout, max_retries=0
        ) as client:

            async def one(url: str, question: str) -> Answered:
                async with gate:
                    return await self._answer(client, url, question, options, new_tokens)

            start = time.perf_counter()
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(one(*request)) for request in asked]
            except* (openai.OpenAIError, ValueError) as errors:
                raise InvalidInputs(f"server {self.url!r}: {first_line(errors.exceptions[0])}") from errors
            return [task.result() for task in tasks], time.perf_counter() - start

    async def _answer(
        self, client: Any, url: str, question: str, options: dict[str, Any] | None, new_tokens: int
    ) -> Answered:
        start, first, used = time.perf_counter(), 0.0, None
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
        stream = await client.chat.completions.create(
            model=self.model,
            messages=[{"role": "user", "content": content}],
            temperature=0,
            max_tokens=new_tokens,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True, "mm_processor_kwargs": {"foveate": options}},
        )
        async for chunk in stream:  # the first comes with the first token
            first = first or time.perf_counter() - start
            used = chunk.usage or used
        if used is None:
            raise ValueError("an answer ended without its count of tokens (stream_options.include_usage)")
        if used.completion_tokens != new_tokens:  # vLLM cuts it where the prompt leaves too little room
            raise ValueError(
                f"an answer of {used.completion_tokens} tokens where {new_tokens} were asked for, behind a prompt "
                f"of {used.prompt_tokens}: give the server a larger --max-model-len, or ask for fewer"
            )
        return Answered(first, time.perf_counter() - start, used.prompt_tokens, used.completion_tokens)


def _key() -> str:
    return os.environ.get("OPENAI_API_KEY") or "none"


def _read(url: str, path: str, timeout: float) -> str:
    try:
        request = urllib.request.Request(url + path, headers={"Authorization": f"Bearer {_key()}"})
        with opener().open(request, timeout=timeout) as answer:
            text: str = answer.read().decode()
            return text
    except (OSError, ValueError, HTTPException) as error:  # the last: a port that speaks something else
        raise InvalidInputs(f"server {url!r}: no vLLM server answers there ({first_line(error)})") from error


def _counter(page: str, name: str) -> int:
    """The sum of a counter over engines; Prometheus adds ``_total`` to its name."""
    found = re.findall(rf"^{name}(?:_total)?(?:{{[^}}]*}})? (\S+)$", page, flags=re.MULTILINE)
    return round(sum(float(value) for value in found))
