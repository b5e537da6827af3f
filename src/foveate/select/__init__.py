"""Selection engines: pure tensors in, indices out, and shares where tokens are merged. They know no model."""

from foveate.select.bipartite import merge_bipartite
from foveate.select.contextual import merge_contextual
from foveate.select.neighbours import count_outliers, merge_neighbours
from foveate.select.residual import optimal_energy, residual_energy, select_residual
from foveate.select.span import energy_outside

__all__ = [
    "count_outliers",
    "energy_outside",
    "merge_bipartite",
    "merge_contextual",
    "merge_neighbours",
    "optimal_energy",
    "residual_energy",
    "select_residual",
]
