"""Ten seconds on the user's own device: what layers reach, how fast weights are read, what launches take."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from foveate.bench.estimate.gpus import Device
from foveate.bench.machine import machine

SECONDS = 2.0  # of each of the three
ROWS = {"cuda": 8192, "cpu": 512}  # tokens: as many as fill the device
WIDE = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16}
NARROW = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
READ = 2**28  # bytes of a matrix that no processor's cache holds
DEEP, SHALLOW = 10, 2  # layers; their difference leaves out what is paid once


def measured() -> Device:
    """The GPU if there is one, else the CPU, in the precision in which `foveate bench speed` runs there."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    with torch.inference_mode():
        return Device(
            machine(device),
            _flops(device, dtype),
            _bandwidth(device, dtype),
            _layer(device, dtype),
            dtype.itemsize,
            memory,
            ahead=device.type == "cuda",
        )


def _flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a whole decoder layer: products, and all that stands between them."""
    layers, rows = _layers(1, WIDE, device, dtype), ROWS[device.type]
    entering = torch.randn(1, rows, WIDE["hidden_size"], device=device, dtype=dtype)
    weights: int = sum(weight.numel() for weight in layers.layers.parameters() if weight.dim() == 2)
    operations = 2 * weights * rows + 2 * rows**2 * WIDE["hidden_size"]
    return operations / _seconds(lambda: layers(inputs_embeds=entering, use_cache=False), device)


def _bandwidth(device: torch.device, dtype: torch.dtype) -> float:
    """Bytes per second of one row times a large matrix, which is what decoding does."""
    width = WIDE["hidden_size"]
    matrix = torch.randn(READ // dtype.itemsize // width, width, device=device, dtype=dtype)
    row = torch.randn(1, width, device=device, dtype=dtype)
    return READ / _seconds(lambda: torch.nn.functional.linear(row, matrix), device)


def _layer(device: torch.device, dtype: torch.dtype) -> float:
    """Seconds of a decoder layer so narrow that only its launches take time."""
    entering = torch.randn(1, 8, NARROW["hidden_size"], device=device, dtype=dtype)
    taken = []
    for depth in (DEEP, SHALLOW):
        layers = _layers(depth, NARROW, device, dtype)
        taken.append(_seconds(lambda layers=layers: layers(inputs_embeds=entering, use_cache=False), device))  # type: ignore[misc]
    return max(1e-6, (taken[0] - taken[1]) / (DEEP - SHALLOW))


def _layers(depth: int, sizes: dict[str, int], device: torch.device, dtype: torch.dtype) -> Any:
    from transformers import AutoModel, LlamaConfig

    config = LlamaConfig(**sizes, num_hidden_layers=depth, vocab_size=64)
    with torch.device(device):
        return AutoModel.from_config(config, dtype=dtype, attn_implementation="sdpa").to(device).eval()


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """The median of as many runs as `SECONDS` allow, at least three, behind one that warms up."""
    _wait(work, device)
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < SECONDS:
        taken.append(_wait(work, device))
    return median(taken)


def _wait(work: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
