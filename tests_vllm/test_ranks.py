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


def choose_otherwise(model):
    """All ranks but the first, as rounding may have them."""
    from vllm.distributed import get_tensor_model_parallel_rank

    from foveate.vllm.models import pruning

    order = pruning._order
    if get_tensor_model_parallel_rank() > 0:
        pruning._order = lambda tokens, *asked: (order(tokens, *asked) + 1) % len(tokens.features)


def choose_alone(model):
    from foveate.vllm.models import pruning

    pruning.chosen_by_first = lambda choose, k, device: choose()


def test_two_ranks_answer_as_transformers_does(folders, monkeypatch):
    """The model asks for the common choice: the second rank's own would give other answers."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    both = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    with opened(folders, "llava", {"method": "spare", "keep": 7}, **both) as bench:

        def compared(indices):
            asked = [([picture(i)], QUESTIONS[i % 3]) for i in indices]
            wanted = [bench.expected(*one, foveate.SPARE(relevance="llm"), 7) for one in asked]
            return bench.answers([bench.request(*one) for one in asked]), wanted

        found, wanted = compared(range(3))
        assert found == wanted
        bench.engine.apply_model(choose_otherwise)
        found, wanted = compared(range(3, 6))  # pictures that no cache knows
        assert found == wanted
        bench.engine.apply_model(choose_alone)
        found, wanted = compared(range(6, 9))
        assert all(one != other for one, other in zip(found, wanted, strict=True))
