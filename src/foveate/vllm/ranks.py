"""Tensor parallelism: all ranks keep what the first one chose."""

from collections.abc import Callable

import torch
from torch import Tensor
from vllm.distributed import get_tp_group


def chosen_by_first(choose: Callable[[], Tensor], k: int, device: torch.device) -> Tensor:
    """``choose()``, which is asked on the first rank alone: ``[k]`` int64.

    Ranks hold equal features only up to rounding, and one other token on one rank would mix up its caches
    silently. ``choose`` must not communicate: the other ranks do not call it.
    """
    group = get_tp_group()
    if group.world_size == 1:
        return choose()
    mine = choose() if group.rank_in_group == 0 else torch.empty(k, dtype=torch.long, device=device)
    agreed: Tensor = group.broadcast(mine.to(device), src=0)
    return agreed
