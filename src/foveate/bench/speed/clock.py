"""Points in time on the device that computes, and the seconds between them."""

import time
from typing import Any, Protocol

import torch


class Clock(Protocol):
    """Marks, and the seconds from one to the next."""

    def mark(self) -> Any:
        """Now, in the device's own order of work."""

    def seconds(self, start: Any, stop: Any) -> float:
        """Between two marks; may wait for the device."""


class HostClock:
    """`time.perf_counter`, after what the device has been given is done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> float:
        """Seconds of this process."""
        if self._device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    def seconds(self, start: float, stop: float) -> float:
        """Their difference."""
        return stop - start


class DeviceClock:
    """CUDA's events: recorded in the stream, without making the host wait."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> torch.cuda.Event:
        """An event that is recorded when the stream gets there."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, start: torch.cuda.Event, stop: torch.cuda.Event) -> float:
        """Between two events; waits for the later one."""
        stop.synchronize()
        return float(start.elapsed_time(stop)) / 1000


def clock_of(device: torch.device) -> Clock:
    """The clock of a device."""
    return DeviceClock(device) if device.type == "cuda" else HostClock(device)
