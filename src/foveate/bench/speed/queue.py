"""What work adds to a device's queue, counted on any device: launches, and values that the host waits for.

The model's parameters and the inputs count as lying on the device, and so does what is computed from them. What is
computed from a copy on the host is free.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from foveate.bench.arm import Arm
from foveate.bench.speed.passing import pruned_by
from foveate.bench.speed.subject import Subject
from foveate.select import select_residual

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Counts = tuple[int, int]  # operations, reads

aten = torch.ops.aten
FREE = {aten._local_scalar_dense, aten.detach, aten._unsafe_view}  # beside views: they launch nothing
READS = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten.unique_dim,
    aten._unique2,
    aten.unique_consecutive,
    aten.is_nonzero,
    aten.equal,
}
INDEXING = {aten.index, aten.index_put, aten.index_put_}
COPIES = (Tensor.tolist, Tensor.numpy, Tensor.__array__)  # to the host, without an operation


def count_queue(model: "PreTrainedModel", inputs: Mapping[str, Any], work: Callable[[], Any]) -> Counts:
    """Operations that ``work`` launches, and reads for which the host waits.

    Views are free. The selection engine counts as one operation and no read.

    Args:
        model: its parameters and buffers lie on the device.
        inputs: so do its tensors.
        work: is called once.
    """
    queue = _Queue([*model.parameters(), *model.buffers(), *inputs.values()])
    with queue, _HostCopies(queue), _engine_as_one(queue), torch.no_grad():
        work()
    return queue.operations, queue.reads


def added_by(subject: Subject, arm: Arm, inputs: dict[str, Any], encoder: Counts) -> Counts:
    """What pruning adds beside the vision encoder, of which `encoder_queue` tells."""
    whole = count_queue(subject.model, inputs, lambda: pruned_by(subject, arm, inputs).close())
    return whole[0] - encoder[0], whole[1] - encoder[1]


def encoder_queue(subject: Subject, inputs: dict[str, Any]) -> Counts:
    """What the model's own image encoder adds by itself."""
    encode: Any = subject.model.get_image_features
    names = inspect.signature(encode).parameters
    arguments = {name: value for name, value in inputs.items() if name in names}
    return count_queue(subject.model, inputs, lambda: encode(**arguments))


class _Queue(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation of torch."""

    def __init__(self, given: list[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = self.reads = self.apart = 0
        self._computed = WeakIdKeyDictionary()
        self.holds_too(given)

    def holds(self, tensor: Any) -> bool:
        """Whether it lies on the device."""
        return isinstance(tensor, Tensor) and (tensor in self._computed or tensor.device.type != "cpu")

    @contextmanager
    def as_one(self, operations: int, reads: int) -> Iterator[None]:
        """Count the block as this, whatever it does."""
        if not self.apart:
            self.operations, self.reads = self.operations + operations, self.reads + reads
        self.apart += 1
        try:
            yield
        finally:
            self.apart -= 1

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if not any(map(self.holds, tree_leaves((args, kwargs)))):
            return result
        packet = function.overloadpacket
        if _copies_to_host(packet, args, kwargs):
            self.reads += not self.apart
            return result
        if not self.apart:
            self.operations += not function.is_view and packet not in FREE
            self.reads += packet in READS or _sized_by_values(packet, args, kwargs)
        self.holds_too(result)
        return result

    def holds_too(self, tensors: Any) -> None:
        """These lie on the device, too."""
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor):
                self._computed[tensor] = True


class _HostCopies(TorchFunctionMode):
    """Sees the copies to the host that are no operation of torch."""

    def __init__(self, queue: _Queue) -> None:
        super().__init__()
        self._queue = queue

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function not in COPIES:
            return function(*args, **(kwargs or {}))
        with self._queue.as_one(0, int(self._queue.holds(args[0]))):
            return function(*args, **(kwargs or {}))


def _copies_to_host(packet: Any, args: Any, kwargs: Any) -> bool:
    """On a CPU ``to(device, dtype)`` names the CPU, too: there a copy to the host is one of equal dtype."""
    if packet is not aten._to_copy or str(kwargs.get("device")) != "cpu":
        return False
    return kwargs.get("dtype") in (None, args[0].dtype) or args[0].device.type != "cpu"


def _sized_by_values(packet: Any, args: Any, kwargs: Any) -> bool:
    """Whether the host must know values to know the size of the result: masks as indices, repeats as a tensor."""
    if packet is aten.repeat_interleave:
        return isinstance(args[-1], Tensor) and kwargs.get("output_size") is None
    if packet not in INDEXING:
        return False
    return any(isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1]))


@contextmanager
def _engine_as_one(queue: _Queue) -> Iterator[None]:
    """The selection engine is a kernel of its own on a GPU: wherever it was imported, count it as one launch."""

    def engine(*arguments: Any, **options: Any) -> Tensor:
        with queue.as_one(1, 0):
            order = select_residual(*arguments, **options)
        queue.holds_too(order)
        return order

    rooms = [
        vars(module) for name, module in sys.modules.items() if name.startswith("foveate.") and name != __name__
    ]
    users = [room for room in rooms if room.get("select_residual") is select_residual]
    for room in users:
        room["select_residual"] = engine
    try:
        yield
    finally:
        for room in users:
            room["select_residual"] = select_residual
