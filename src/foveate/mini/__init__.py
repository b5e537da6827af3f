"""The bundled small VLM: scenes it was trained on, questions about them, and the checkpoint.

model, processor = foveate.mini.load()
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import LlavaForConditionalGeneration

__all__ = ["PATH", "load"]

PATH: Path = Path(__file__).parent / "checkpoint"


def load(dtype: torch.dtype | None = None) -> tuple[LlavaForConditionalGeneration, Any]:
    """The model in eval mode (float32 unless `dtype` is given) and its processor."""
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(PATH, dtype=dtype or torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(PATH)
