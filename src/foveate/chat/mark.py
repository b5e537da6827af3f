"""What tells the rows of a KV cache apart, and what it holds from anything else."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.errors import InvalidInputs
from foveate.hf import names

# Keys nearer than this, of the longest, are the same: caches may be moved to another precision.
SAME = 0.02


@dataclass(frozen=True, eq=False)
class Mark:
    """Keys ``[B, ...]`` that one layer holds for the prompt's last column: they follow from all that is before."""

    layer: int
    column: int
    keys: Tensor

    @classmethod
    def of(cls, cache: Any, behind: int) -> "Mark | None":
        """The mark of a cache with ``behind`` tokens after its prompt; None where no layer keeps plain keys."""
        layers = names.at(cache, "layers")
        for number in reversed(range(len(layers))):
            keys = names.plain_keys(layers[number])
            if keys is not None:
                column = int(layers[number].get_seq_length()) - behind - 1
                return cls(number, column, keys[:, :, column].detach().clone())
        return None

    def rows(self, cache: Any, count: int) -> Tensor | None:
        """Which of the prompt's rows each row of the cache is; None where that cannot be told.

        Raises:
            InvalidInputs: some are none of them.
        """
        keys = names.plain_keys(cache.layers[self.layer])
        if keys is None or keys.shape[2] <= self.column:
            return None
        found = keys[:, :, self.column].flatten(1).float()
        known = self.keys.to(found.device).flatten(1).float()
        apart = torch.cdist(found, known)
        nearest, rows = apart.min(dim=1)
        if not bool((nearest <= SAME * known.norm(dim=1).amax()).all()):
            raise InvalidInputs(
                "a KV cache that holds other tokens than when it was last seen: allowed is one that was filled "
                "inside an attach block alone"
            )
        return rows // (len(known) // count)
