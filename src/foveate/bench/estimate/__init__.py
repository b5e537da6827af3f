"""Whether pruning will pay, from a configuration and a data sheet: nothing is installed, loaded or run."""

from foveate.bench.estimate.cost import Case
from foveate.bench.estimate.gpus import GPUS, Device, gpu
from foveate.bench.estimate.report import estimate
from foveate.bench.estimate.sizes import Sizes

__all__ = ["GPUS", "Case", "Device", "Sizes", "estimate", "gpu"]
