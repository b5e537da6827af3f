"""Whether pruning will pay, from a configuration and a data sheet: no weights are loaded."""

from typing import TYPE_CHECKING

from foveate.lazy import lazy

if TYPE_CHECKING:
    from foveate.bench.estimate.cost import Case
    from foveate.bench.estimate.gpus import GPUS, Device, gpu
    from foveate.bench.estimate.measure import measured
    from foveate.bench.estimate.report import estimate, estimate_table, notes
    from foveate.bench.estimate.sizes import Sizes

__all__ = ["GPUS", "Case", "Device", "Sizes", "estimate", "estimate_table", "gpu", "measured", "notes"]

_HOMES = {
    "cost": ("Case",),
    "gpus": ("GPUS", "Device", "gpu"),
    "measure": ("measured",),
    "report": ("estimate", "estimate_table", "notes"),
    "sizes": ("Sizes",),
}
lazy(__name__, {name: home for home, names in _HOMES.items() for name in names})
