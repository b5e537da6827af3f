"""Selection engines: pure tensors in, indices out. They know no model."""

from foveate.select.alternating import select_alternating
from foveate.select.coverage import select_coverage
from foveate.select.farthest import select_farthest
from foveate.select.residual import optimal_energy, residual_energy, select_residual
from foveate.select.span import energy_outside
from foveate.select.unlike import select_unlike

__all__ = [
    "energy_outside",
    "optimal_energy",
    "residual_energy",
    "select_alternating",
    "select_coverage",
    "select_farthest",
    "select_residual",
    "select_unlike",
]
