"""``foveate bench serve``."""

from typing import Annotated

import typer

from foveate.bench.defaults import Serve
from foveate.bench.documents import check_documents
from foveate.cli.names import check_budgets, check_methods
from foveate.cli.options import DocsOption, JsonFlag, KeepOption, OutOption
from foveate.cli.output import may_overwrite, print_json, show, written_command
from foveate.cli.telling import run_of


def measure_server(
    context: typer.Context,
    url: Annotated[str, typer.Argument(help="A running vLLM server, such as http://localhost:8000.")],
    methods: Annotated[str, typer.Option(help="Beside no pruning.")] = Serve.METHODS,
    keep: KeepOption = Serve.BUDGETS,
    images: Annotated[int, typer.Option(help="Pictures of noise per round.")] = Serve.IMAGES,
    questions: Annotated[int, typer.Option(help="Requests about each picture.")] = Serve.QUESTIONS,
    concurrency: Annotated[
        str, typer.Option(help="Requests under way at any time, such as 1,4.")
    ] = Serve.CONCURRENCY,
    max_new_tokens: Annotated[int, typer.Option(help="Length of every answer.")] = Serve.NEW_TOKENS,
    size: Annotated[tuple[int, int], typer.Option(help="Pixels of a picture, width and height.")] = Serve.SIZE,
    rounds: Annotated[
        int, typer.Option(help="In each, every arm is sent the same requests; from 6 on ratios are judged.")
    ] = Serve.ROUNDS,
    timeout: Annotated[float, typer.Option(help="Seconds for a request.")] = Serve.TIMEOUT,
    about: Annotated[
        str | None, typer.Option(help="Of the server, for the page: its command, its hardware.")
    ] = None,
    out: OutOption = None,
    docs: DocsOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure a running vLLM server with and without pruning, under the same load."""
    from foveate.bench.web import address

    address(url)
    check_budgets(keep)
    check_methods(methods)
    if docs:
        check_documents(docs, Serve.PAGE, may_overwrite)
    with run_of(out, Serve.FILE) as told:
        told("asking the server")
        from foveate import bench

        benchmark = bench.serve.Benchmark.make(
            methods=methods,
            keep=keep,
            images=images,
            questions=questions,
            concurrency=concurrency,
            new_tokens=max_new_tokens,
            rounds=rounds,
            size=size,
        )
        server = bench.serve.Server.find(url, timeout)
        told("starting", total=benchmark.requests)
        summary = benchmark.measure(server, out, about=about, progress=told)
        page = docs and bench.serve.write_documents(summary, docs, written_command(context, "about"))
    if as_json:
        print_json(summary)
        return
    show(bench.serve.serve_table(summary))
    print(bench.serve.context_line(summary))
    if page:
        print(f"written: {page}")
