"""Selection engines: pure tensors in, indices out. They know no model."""

from foveate.select.residual import optimal_energy, residual_energy, select_residual
from foveate.select.span import energy_outside

__all__ = ["energy_outside", "optimal_energy", "residual_energy", "select_residual"]
