"""Tensor parallelism: every rank keeps what the first one chose, though each would choose otherwise."""

import socket

import torch
from torch import multiprocessing

import foveate
from conftest import QUESTIONS, opened, picture
from foveate.vllm.ranks import chosen_by_first


def on_rank(rank, port, results):
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel

    with set_current_vllm_config(VllmConfig()):
        init_distributed_environment(2, rank, f"tcp://127.0.0.1:{port}", rank, "gloo")
        initialize_model_parallel(2)
        own = torch.tensor([4, 2, 7]) + rank  # what rounding may do to a choice, made certain
        results.put((rank, own.tolist(), chosen_by_first(lambda: own, 3, torch.device("cpu")).tolist()))
        torch.distributed.barrier()


def test_all_ranks_keep_what_the_first_chose():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    ranks = [context.Process(target=on_rank, args=(rank, port, results)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(1500)
    found = sorted(results.get() for _ in ranks if not results.empty())
    assert found == [(0, [4, 2, 7], [4, 2, 7]), (1, [5, 3, 8], [4, 2, 7])]


def test_two_ranks_answer_as_transformers_does(folders, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    both = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    with opened(folders, "llava", {"method": "spare", "keep": 7}, **both) as bench:
        wanted = [bench.expected([picture(i)], QUESTIONS[i], foveate.SPARE(relevance="llm"), 7) for i in range(3)]
        assert bench.answers([bench.request([picture(i)], QUESTIONS[i]) for i in range(3)]) == wanted
