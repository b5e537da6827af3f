"""Selection engines: pure tensors in, indices out, and shares where tokens are merged. They know no model."""

from foveate.select.alternating import select_alternating
from foveate.select.bipartite import merge_bipartite
from foveate.select.contextual import merge_contextual
from foveate.select.coverage import select_coverage
from foveate.select.farthest import select_farthest
from foveate.select.neighbours import count_outliers, merge_neighbours
from foveate.select.residual import select_residual
from foveate.select.residual.energy import optimal_energy, residual_energy
from foveate.select.span import energy_outside
from foveate.select.unlike import select_unlike

__all__ = [
    "count_outliers",
    "energy_outside",
    "merge_bipartite",
    "merge_contextual",
    "merge_neighbours",
    "optimal_energy",
    "residual_energy",
    "select_alternating",
    "select_coverage",
    "select_farthest",
    "select_residual",
    "select_unlike",
]
