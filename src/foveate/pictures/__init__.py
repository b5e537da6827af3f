"""Pictures as a viewer shows them."""

from foveate.pictures.load import load_picture

__all__ = ["load_picture"]
