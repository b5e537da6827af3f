"""The model that is timed, and what it is asked."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from foveate.bench import checkpoint
from foveate.bench.defaults import Speed
from foveate.bench.machine import fingerprint
from foveate.bench.speed.presets import build, preset_of
from foveate.bench.speed.prompts import written
from foveate.bench.speed.stand_in import QUESTION, stand_in
from foveate.errors import InvalidOption, first_line, unknown
from foveate.families import family_of
from foveate.flow.prompt import placeholders

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in Speed.DTYPES}
PICTURE = (640, 480)  # pixels, width and height, of what checkpoints are shown


@dataclass(frozen=True)
class Subject:
    """A model, and inputs for it.

    Attributes:
        name: for people.
        identity: changes when the model does.
        model: in eval mode.
        processor: or the stand-in for one.
        question: what the methods are told the question is; None to read it from the prompt.
        inputs: of so many visual tokens per image and so many rows, on the model's device.
        sizes: visual tokens per image to measure; None is whatever the processor makes.
        clip: CLIP pair of the vision tower, or None.
    """

    name: str
    identity: str
    model: "PreTrainedModel" = field(repr=False)
    processor: Any = field(repr=False)
    question: str | None
    inputs: Callable[[int | None, int], dict[str, Any]] = field(repr=False)
    sizes: Sequence[int | None]
    clip: str | None = None

    def visual_tokens(self, inputs: dict[str, Any]) -> int:
        """Of the first row's image."""
        stands = placeholders(self.model, family_of(self.model), inputs["input_ids"])
        return int(stands[0].sum())

    @property
    def attention(self) -> str:
        """The backends in force: of the language model, then of the vision tower and the rest where other."""
        whole = self.model.config
        configs = (self.model.get_decoder().config, getattr(whole, "vision_config", whole), whole)
        return ", ".join(dict.fromkeys(str(config._attn_implementation) for config in configs))

    @property
    def weights(self) -> int:
        """Bytes."""
        return sum(weight.numel() * weight.element_size() for weight in self.model.parameters())


def of_preset(
    name: str, sizes: Sequence[int] | None, text: int | None, dtype: str | None, attention: str
) -> Subject:
    """A model with random weights, on the GPU if there is one.

    Args:
        name: of `PRESETS`.
        sizes: visual tokens per image; None takes the preset's.
        text: tokens of text in a prompt; None for 64.
        dtype: None for float32 on a CPU, bfloat16 on a GPU.
        attention: backend.

    Raises:
        InvalidOption: one of them is not allowed.
    """
    preset = preset_of(name)
    sizes = [preset.tokens] if sizes is None else sizes
    text = Speed.TEXT if text is None else text
    config = preset.config()
    for size in sizes:  # before the weights are made
        written(config, preset.inputs, size, text, 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = _dtype(dtype) or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    _check_attention(attention, precision)
    model = build(preset, device, precision, attention)

    def inputs(size: int | None, batch: int) -> dict[str, Any]:
        tokens = preset.tokens if size is None else size
        return _moved(written(model.config, preset.inputs, tokens, text, batch), model)

    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True, default=str).encode()).hexdigest()[:12]
    shown = f"{name} ({preset.about}; {preset.parameters / 1e9:.2f} B parameters, random)"
    return Subject(
        shown, f"{name} {digest}, {text} tokens of text", model, stand_in(), QUESTION, inputs, list(sizes)
    )


def of_checkpoint(
    path: str, sizes: Sequence[int] | None, text: int | None, dtype: str | None, attention: str, clip: str | None
) -> Subject:
    """A checkpoint, shown noise and asked one question.

    Args:
        path: path, id or ``mini``.
        sizes: refused: its processor decides.
        text: refused likewise.
        dtype: None for that of `foveate.bench.load`.
        attention: backend.
        clip: CLIP pair of the vision tower: path or id.

    Raises:
        InvalidOption, InvalidInputs, UnsupportedModel: an option that is not allowed, or no such model.
    """
    if sizes is not None or text is not None:
        name, given = ("sizes", sizes) if sizes is not None else ("text", text)
        raise InvalidOption(f"{name} {given}: allowed with --preset; a checkpoint's processor decides by itself")
    wanted = _dtype(dtype)
    _check_attention(attention, wanted)
    model, processor = checkpoint.load(path)
    try:
        model = model.to(wanted or model.dtype)
        model.set_attn_implementation(attention)
    except (ImportError, ValueError) as error:
        raise InvalidOption(f"attention {attention!r}: not to be had here ({first_line(error)})") from error

    def inputs(size: int | None, batch: int) -> dict[str, Any]:
        pictures = [_noise(seed) for seed in range(batch)]
        return _moved(checkpoint.requests(processor, pictures, [QUESTION] * batch), model)

    return Subject(path, fingerprint(model), model, processor, None, inputs, [None], clip)


def _moved(inputs: Any, model: "PreTrainedModel") -> dict[str, Any]:
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }


def _noise(seed: int) -> Image.Image:
    width, height = PICTURE
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _dtype(name: str | None) -> torch.dtype | None:
    if name is not None and name not in DTYPES:
        raise unknown("dtype", name, DTYPES)
    return None if name is None else DTYPES[name]


def _check_attention(name: str, dtype: torch.dtype | None) -> None:
    """Refuse early what a model would refuse late.

    Raises:
        InvalidOption: an unknown backend, or one that cannot run here.
    """
    if name not in Speed.ATTENTIONS:
        raise unknown("attention", name, Speed.ATTENTIONS)
    if name == "flash_attention_2" and not torch.cuda.is_available():
        raise InvalidOption(f"attention {name!r}: needs a GPU; allowed here are {', '.join(Speed.ATTENTIONS[:2])}")
    if name == "flash_attention_2" and dtype == torch.float32:
        raise InvalidOption(f"attention {name!r} with dtype 'float32': allowed are bfloat16 and float16")
