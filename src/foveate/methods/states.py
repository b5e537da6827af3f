"""Which states a method compares: those that the projector reads, or the tokens it makes of them."""

from typing import Literal

from torch import Tensor

from foveate.tokens import Signal, VisualTokens

States = Literal["auto", "patches", "tokens"]
STATES = ("auto", "patches", "tokens")


def settled_states(states: States, available: frozenset[Signal]) -> States:
    """``auto`` decided: patches where they are to be had, else tokens."""
    return states if states != "auto" else "patches" if Signal.PATCHES in available else "tokens"


def states_of(tokens: VisualTokens, states: str) -> Tensor:
    """``[..., N, Dv]`` patches or ``[..., N, D]`` tokens.

    Raises:
        MissingSignal: patches that were not collected.
    """
    return tokens.signal(Signal.PATCHES) if states == "patches" else tokens.features
