"""What pruning adds to a device's queue: exact counts of launches and of reads, and how they are told."""

import numpy as np
import pytest
import torch

import foveate
from foveate.bench.speed.contestants import STOCK, contestants
from foveate.bench.speed.queue import count_queue
from foveate.bench.speed.running import Effort, run
from foveate.bench.speed.store import Store, Weighed
from foveate.select import select_residual
from speedy import tiny_subject
from zoo import ZOO


class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3, 3))


MODEL, GIVEN = Linear(), {"x": torch.arange(1.0, 13.0).view(4, 3)}
x, w = GIVEN["x"], MODEL.weight
HOST = torch.ones(4)

# What is done, with its operations and reads.
WORK = {
    "nothing": (lambda: None, 0, 0),
    "a product": (lambda: x @ w, 1, 0),
    "of what was computed": (lambda: (x @ w) + 1, 2, 0),
    "in place": (lambda: (x @ w).add_(1).mul_(2), 3, 0),
    "views": (lambda: x.view(3, 4).transpose(0, 1)[1:].unsqueeze(0).expand(2, -1, -1), 0, 0),
    "on the host": (lambda: (HOST + 1).sum().item(), 0, 0),
    "item": (lambda: x.sum().item(), 1, 1),
    "bool": (lambda: bool((x > 0).all()), 2, 1),
    "int": (lambda: int(x[0, 0]), 0, 1),
    "tolist": (lambda: x.tolist(), 0, 1),
    "tolist of one value": (lambda: x[0, 0].tolist(), 0, 1),
    "numpy": (lambda: x.numpy(), 0, 1),
    "asarray": (lambda: np.asarray(x), 0, 1),
    "nonzero": (lambda: x.nonzero(), 1, 1),
    "where of one argument": (lambda: torch.where(x > 3), 2, 1),
    "by a mask": (lambda: x[x > 3], 2, 1),
    "by indices": (lambda: x[torch.tensor([0, 2])], 1, 0),
    "unique": (lambda: x.unique(), 1, 1),
    "repeats": (lambda: torch.repeat_interleave(x[0].long()), 2, 1),
    "a copy to the host": (lambda: x.to("cpu", copy=True), 0, 1),
    "free behind the copy": (lambda: (x.to("cpu", copy=True) + 1).tolist(), 0, 1),
    "another precision": (lambda: x.to("cpu", torch.float64), 1, 0),
    "the engine": (lambda: foveate.select.select_residual(x, 2), 1, 0),
}


@pytest.mark.parametrize("name", WORK)
def test_operations_and_reads_are_counted_one_by_one(name):
    work, operations, reads = WORK[name]
    assert count_queue(MODEL, GIVEN, work) == (operations, reads)


def test_nothing_is_left_of_it_behind_the_count():
    def fails():
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        count_queue(MODEL, GIVEN, fails)
    assert foveate.select.select_residual is select_residual
    before = count_queue(MODEL, GIVEN, lambda: x @ w)
    assert (x @ w).tolist()
    assert count_queue(MODEL, GIVEN, lambda: x @ w) == before


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_the_result_is_the_same_with_and_without_counting(name):
    model, inputs = ZOO[name].build(), ZOO[name].prompt((1, 1))
    found = []
    count = count_queue(model, inputs, lambda: found.append(foveate.prune(model, inputs, foveate.RRQR(), keep=5)))
    expected = foveate.prune(model, inputs, foveate.RRQR(), keep=5)
    assert all(map(torch.equal, found[0].kept, expected.kept))
    assert count == count_queue(model, inputs, lambda: foveate.prune(model, inputs, foveate.RRQR(), keep=5))


def test_one_more_operation_in_a_method_is_one_more_in_the_count():
    class OneMore(foveate.UniformGrid):
        def rank(self, tokens, k):
            tokens.features.add(1)
            return super().rank(tokens, k)

    model, inputs = ZOO["llava"].build(), ZOO["llava"].prompt((1,))
    plain, more = (
        count_queue(model, inputs, lambda method=method: foveate.prune(model, inputs, method, keep=5))
        for method in (foveate.UniformGrid(), OneMore())
    )
    assert (more[0] - plain[0], more[1] - plain[1]) == (1, 0)


def test_a_run_counts_what_each_arm_adds_and_stock_adds_nothing():
    subject, store, found = tiny_subject(), Store(), contestants("uniform,rrqr", "8")
    run(subject, found, [1, 2], store, Effort(repeats=1, warmup=0, new_tokens=2))
    for (case, key), weighed in store.weighed.items():
        if key == STOCK:
            assert (weighed.operations, weighed.reads) == (None, None)
        else:
            assert 0 < weighed.operations < 600
            assert 0 < weighed.reads < 200, case
    rrqr, uniform = (store.weighed[(36, 1), one.key].operations for one in (found[3], found[2]))
    assert rrqr >= uniform


def test_results_of_an_older_version_are_read_without_counts():
    older = {
        "tokens": 36, "batch": 1, "contestant": STOCK, "memory": None, "kv_bytes": 1, "prompt": 50,
        "tokens_per_layer": [36], "attention": "sdpa", "dtype": "float32", "decided": None,
    }  # fmt: skip
    assert Weighed(**older).operations is None
