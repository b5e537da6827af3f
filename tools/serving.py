"""A vLLM server of a checkpoint is started, measured with and without pruning, and stopped again.

    python tools/serving.py .venv-vllm/bin/vllm build/llava-0.5b --out build/serving --docs docs

The checkpoint is made if it is not there (`serve_checkpoint.py`). Options of `foveate bench serve` may follow.
"""

import argparse
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open

from foveate.bench.machine import machine
from serve_checkpoint import TOWER, write

HOST, PORT = "127.0.0.1", 8000
READY = 1800  # seconds until the server is given up
TAIL = 5000  # characters of its log that are shown then
OPTIONS = {
    "--hf-overrides": '{"foveate": {}}',
    "--trust-request-mm-kwargs": None,
    "--dtype": "float32",
    "--enforce-eager": None,
    "--max-model-len": "1024",
    "--block-size": "32",
    "--max-num-seqs": "8",
    "--limit-mm-per-prompt": '{"image": 1, "video": 0}',
}


def weights(checkpoint: Path) -> str:
    """How many there are, in words."""
    with safe_open(checkpoint / "model.safetensors", "pt") as stored:
        names = stored.keys()
        sizes = {name: math.prod(stored.get_slice(name).get_shape()) / 1e9 for name in names}
    tower = sum(size for name, size in sizes.items() if TOWER in name)
    return f"Its {sum(sizes.values()):.2f} B weights are random, {tower:.2f} B of them the vision tower's."


def command(vllm: Path, checkpoint: Path, port: int, options: dict[str, str | None]) -> list[str]:
    own = {"--served-model-name": checkpoint.name, "--host": HOST, "--port": str(port)}
    given = [part for pair in {**OPTIONS, **own, **options}.items() for part in pair if part is not None]
    return [str(vllm), "serve", str(checkpoint), *given]


@contextmanager
def served(started: list[str], port: int, environment: dict[str, str], log: Path):
    """The URL of a server that answers, stopped at the end."""
    url = f"http://{HOST}:{port}"
    with socket.socket() as taken:
        if taken.connect_ex((HOST, port)) == 0:
            sys.exit(f"serving: another server listens on {url}; stop it first")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        process = subprocess.Popen(
            started, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        wait_for(url, process, log)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + READY
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=10):
                return
        except OSError:  # it does not listen yet
            time.sleep(0.5)
    sys.exit(f"serving: the server did not start; {log} ends with\n{log.read_text()[-TAIL:]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vllm", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--pythonpath", default="", help="of the server")
    parser.add_argument("--log", type=Path, default=Path("build/serving.log"), help="of the server")
    given, options = parser.parse_known_args()
    if not (given.checkpoint / "processor_config.json").is_file():  # what is written last
        write(given.checkpoint)
    # By default vLLM leaves one core to its front end, which is half of two.
    cores = {"VLLM_CPU_OMP_THREADS_BIND": f"0-{torch.get_num_threads() - 1}"}
    limits = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1"}  # GiB
    environment = {**limits, **cores, **os.environ, "PYTHONPATH": given.pythonpath}
    started = command(given.vllm, given.checkpoint, PORT, {})
    about = f"The server, on {machine(torch.device('cpu'))}: `{shlex.join(['vllm', *started[1:]])}`."
    about += f" {weights(given.checkpoint)}"
    with served(started, PORT, environment, given.log) as url:
        foveate = Path(sys.executable).with_name("foveate")
        sys.exit(subprocess.run([foveate, "bench", "serve", url, "--about", about, *options]).returncode)
