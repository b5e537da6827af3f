"""Methods that put other tokens in the places of some: one paper per file."""

from foveate.methods.merging.base import Merging, Resizing

__all__ = ["Merging", "Resizing"]
