"""Tiny random models of every family, and prompts for them as the families' processors write them.

The real processors need tokenizers and torchvision, so their rules (``processing_*.py`` of transformers) are
written down here for pictures of noise. Pictures of one prompt differ in size wherever the family allows it.
"""

from . import gemma, llava, qwen, tiled

ZOO = llava.ANIMALS | qwen.ANIMALS | tiled.ANIMALS | gemma.ANIMALS
# By the entry that has the model.
MIXED = qwen.MIXED | llava.MIXED
