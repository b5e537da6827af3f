"""What a computation asks of a device, counted on a CPU: operations, and reads that would make the host wait."""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
READS = {
    *(aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.unique_dim, aten._unique2),
    *(aten.unique_consecutive, aten.is_nonzero, aten.equal),
}
FREE = {aten._local_scalar_dense, aten.detach, aten._unsafe_view}  # no launch on a GPU


class Count(TorchDispatchMode):
    """Operations and reads of all tensors, but for the engine's own within `apart`."""

    def __init__(self):
        super().__init__()
        self.ops = self.reads = self._apart = 0
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        packet = function.overloadpacket
        if not self._apart:
            self.ops += not function.is_view and packet not in FREE
            if not function.is_view and packet not in FREE:
                self.names.append(str(packet))
            by_mask = packet in (aten.index, aten.index_put_, aten.index_put) and any(
                isinstance(leaf, torch.Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1])
            )
            self.reads += by_mask or packet in READS
        return function(*args, **(kwargs or {}))

    def apart(self, engine):
        """``engine`` as one operation that reads nothing."""

        def alone(*args, **options):
            self.ops += not self._apart
            self._apart += 1
            try:
                return engine(*args, **options)
            finally:
                self._apart -= 1

        return alone


@contextmanager
def counted(monkeypatch, *engines):
    """A block in which all is counted; ``engines`` are (module, name) of functions that count as one operation."""
    count = Count()
    with monkeypatch.context() as patch:
        for module, name in engines:
            patch.setattr(module, name, count.apart(getattr(module, name)))
        for name in ("tolist", "numpy"):
            read = getattr(torch.Tensor, name)

            def wrapped(self, *args, _read=read, **options):
                count.reads += not count._apart
                return _read(self, *args, **options)

            patch.setattr(torch.Tensor, name, wrapped)
        with count:
            yield count
