"""The CLS query's attention, as a score of every token."""

import torch
from torch import Tensor

from foveate.errors import InvalidFeatures
from foveate.methods.base import precise
from foveate.tokens import Signal, VisualTokens


def cls_attention_of(tokens: VisualTokens) -> Tensor:
    """``[N]``, 0 or more, float64 as it is, all else in float32.

    Raises:
        MissingSignal: it was not collected.
        InvalidFeatures: NaN, infinite or negative values.
    """
    attention = precise(tokens.signal(Signal.CLS_ATTENTION))
    if not bool(torch.isfinite(attention).all()) or bool((attention < 0).any()):
        raise InvalidFeatures("cls_attention holds NaN, infinite or negative values: allowed are numbers >= 0")
    return attention
