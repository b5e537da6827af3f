"""vLLM's own models with pruning put before them.

Registered through this package and not by module: vLLM caches what it knows of a class under a hash of the file
that it is registered from, and of all files beneath if that is a package.
"""

from foveate.vllm.names import MODEL, fault

if lacking := fault(MODEL):
    raise ImportError(f"{lacking}; VLLM_PLUGINS='' serves without foveate")

from foveate.vllm.models.llava import PrunedLlava, PrunedLlavaNext, PrunedLlavaOnevision
from foveate.vllm.models.qwen import PrunedQwen2VL, PrunedQwen3VL, PrunedQwen25VL

__all__ = [
    "PrunedLlava",
    "PrunedLlavaNext",
    "PrunedLlavaOnevision",
    "PrunedQwen2VL",
    "PrunedQwen3VL",
    "PrunedQwen25VL",
]
