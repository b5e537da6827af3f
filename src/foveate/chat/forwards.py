"""Forwards that were pruned, until they end: by return, by error, or without a word."""

import sys
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

from torch.nn.modules import module as torch_module

from foveate.chat.memory import Memory
from foveate.chat.request import Asked, Request
from foveate.pruned import Pruned


class Attachment(Protocol):
    """One block: what it asks of the model, and where it remembers what came of it."""

    request: Request
    last: Pruned | None

    def record(self, asked: Asked) -> None:
        """Remember what became of a prompt whose call ended well."""


@dataclass(eq=False)
class Forward:
    """A forward on its way: what it was given in place of pixels tells it from any other."""

    encoded: Any
    asked: Asked
    attachment: Attachment
    memory: Memory
    thread: int
    frame: FrameType | None

    def runs(self) -> bool:
        """Whether it is still on its thread's stack: what is interrupted leaves no other trace."""
        if self.frame is None:  # it cannot be told
            return True
        frame = sys._current_frames().get(self.thread)
        while frame is not None and frame is not self.frame:
            frame = frame.f_back
        return frame is not None


def calling() -> FrameType | None:
    """The frame in which torch calls this module."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename != torch_module.__file__:
        frame = frame.f_back
    return frame
