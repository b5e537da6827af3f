"""What a measurement ran on."""

import hashlib
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKAGE = Path(__file__).parent.parent
# Of the benchmark, the files that an answer depends on; the others only plan, count and print.
DECIDING = ("arm.py", "checkpoint.py", "quality/energy.py", "quality/items.py", "quality/running.py")
PRINTING = ("draw.py", *(f"cli/{path.name}" for path in (PACKAGE / "cli").glob("*.py")))


def machine(device: torch.device) -> str:
    """The processor (and the GPU, where that computes), cores and threads, in words."""
    cores = torch.get_num_threads()
    text = f"{_processor()}, {cores} thread{'s' * (cores != 1)}"
    return f"{torch.cuda.get_device_name(device)}, {text}" if device.type == "cuda" else text


def versions() -> dict[str, str]:
    """Of Python and of the packages that a result depends on."""
    packages = {name: version(name) for name in ("torch", "transformers", "foveate")}
    return {"python": platform.python_version(), **packages}


def fingerprint(model: "PreTrainedModel") -> str:
    """Twelve hexadecimal digits that change when a weight does."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def code(deciding: Sequence[str] = DECIDING) -> str:
    """Twelve hexadecimal digits that change when a line does on which a result depends.

    Args:
        deciding: of the benchmark, the files that it depends on.
    """
    bench = PACKAGE / "bench"
    files = {path for path in PACKAGE.rglob("*.py") if not path.is_relative_to(bench)}
    files = (files | {bench / name for name in deciding}) - {PACKAGE / name for name in PRINTING}
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def commit() -> str | None:
    """The commit of the checkout that this runs from, ``+`` behind it where files differ; None without one."""
    git = ["git", "-C", str(PACKAGE)]
    try:
        named = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=9
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno", "."], capture_output=True, text=True, timeout=9
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return None if named.returncode else named.stdout.strip() + "+" * bool(changed.stdout.strip())


def _processor() -> str:
    listing = Path("/proc/cpuinfo")  # platform.processor() is empty or "x86_64" on Linux
    lines = listing.read_text().splitlines() if listing.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
