"""What a measurement ran on."""

import hashlib
import platform
from importlib.metadata import version
from pathlib import Path

import torch


def machine(device: torch.device) -> str:
    """The processor (and the GPU, where that computes), cores and threads, in words."""
    cores = torch.get_num_threads()
    text = f"{_processor()}, {cores} thread{'s' * (cores != 1)}"
    return f"{torch.cuda.get_device_name(device)}, {text}" if device.type == "cuda" else text


def versions() -> dict[str, str]:
    """Of Python and of the packages that a result depends on."""
    packages = {name: version(name) for name in ("torch", "transformers", "foveate")}
    return {"python": platform.python_version(), **packages}


def code() -> str:
    """Twelve hexadecimal digits that change when a line of this package does."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _processor() -> str:
    listing = Path("/proc/cpuinfo")  # platform.processor() is empty or "x86_64" on Linux
    lines = listing.read_text().splitlines() if listing.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
