"""Selection engines: pure tensors in, indices out. They know no model."""

from foveate.select.residual import optimal_energy, residual_energy, select_residual

__all__ = ["optimal_energy", "residual_energy", "select_residual"]
