"""Methods that drop tokens between two layers of the language model: one paper per file."""

from foveate.methods.inside.base import Inside, Recycled, Stage

__all__ = ["Inside", "Recycled", "Stage"]
