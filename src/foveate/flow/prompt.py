"""What a caller passed, read once: the only copy from the device to the host before the images are encoded."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveate.errors import InvalidInputs
from foveate.families import PIXELS, Family
from foveate.flow.check import check_inputs, check_pads
from foveate.hf import names

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class Prompt:
    """A processor's output, and host copies of what says where its tokens lie.

    Attributes:
        inputs: as they were passed; lists where stock takes lists.
        host: ``input_ids``, ``attention_mask`` (bool, always there), and the inputs that the family and the
            positions are worked out from, as tensors on the host.
        counted: whether positions count attended columns, as generate() has it; else all columns, as a plain
            forward has it.
    """

    inputs: dict[str, Any]
    host: dict[str, Any]
    counted: bool

    @classmethod
    def read(
        cls, model: "PreTrainedModel", family: Family, inputs: Mapping[str, Any], generates: bool = True
    ) -> "Prompt":
        """Check the inputs and copy what the host needs of them.

        Args:
            model: unwrapped.
            family: the model's.
            inputs: what the model's processor returned.
            generates: whether they are read as generate() reads them: padding is told by its id where no mask is
                given, and positions count attended columns.

        Raises:
            InvalidInputs: what cannot be pruned soundly.
        """
        check_inputs(model, family, inputs)
        given = {name: inputs[name] for name in _told(model, family) if inputs.get(name) is not None}
        host = _copied(given)
        ids = host["input_ids"]
        if "attention_mask" not in host:
            host["attention_mask"] = _inferred(model, inputs, ids) if generates else torch.ones_like(ids)
        host["attention_mask"] = host["attention_mask"].bool()
        check_pads(host, placeholder_ids(model, family))
        return cls(dict(inputs), host, generates)

    @property
    def ids(self) -> Tensor:
        """``[B, L]`` on the host."""
        ids: Tensor = self.host["input_ids"]
        return ids

    @property
    def attended(self) -> Tensor:
        """``[B, L]`` bool on the host."""
        mask: Tensor = self.host["attention_mask"]
        return mask

    @property
    def known(self) -> dict[str, Any]:
        """The inputs, those that the host has a copy of on the host: what a family is asked with."""
        return {**self.inputs, **self.host}

    @property
    def device(self) -> torch.device:
        """Where the ids are, and the shorter prompt will be."""
        device: torch.device = self.inputs["input_ids"].device
        return device


def placeholder_id(model: "PreTrainedModel", kind: str) -> int | None:
    """The id of the placeholder of images or videos; None where the model has none."""
    token = getattr(model.config, f"{kind}_token_id", None)
    return None if token is None else int(token)


def placeholder_ids(model: "PreTrainedModel", family: Family) -> list[int]:
    """The placeholder ids of all kinds that a family takes."""
    return [token for kind in family.kinds if (token := placeholder_id(model, kind)) is not None]


def placeholders(model: "PreTrainedModel", family: Family, input_ids: Tensor) -> Tensor:
    """Where ``input_ids [B, L]`` stand for images or videos: bool, the same shape."""
    ids = placeholder_ids(model, family)
    return torch.isin(input_ids, torch.tensor(ids, device=input_ids.device))


def mask_of(model: "PreTrainedModel", inputs: Mapping[str, Any]) -> Tensor | None:
    """The mask that generate() goes by: the given one, or one told by the id of padding; None for no padding."""
    if inputs.get("attention_mask") is not None:
        given: Tensor = inputs["attention_mask"]
        return given
    told = _inferred(model, inputs, inputs["input_ids"])
    return None if bool(told.all()) else told.long()


def as_tensor(name: str, value: Any) -> Tensor:
    """An argument that stock takes as a tensor, an array, or rows of either in a list.

    Raises:
        InvalidInputs: it is none of these.
    """
    if isinstance(value, Tensor):
        return value
    try:
        rows = isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor)
        return torch.stack(list(value)) if rows else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputs(f"{name}={value!r}: allowed is a tensor, or numbers in lists") from error


def _told(model: "PreTrainedModel", family: Family) -> list[str]:
    """The inputs whose values the host needs."""
    rule = names.rope_index(model)
    read = () if rule is None else inspect.signature(rule).parameters
    required = (name for needed in family.requires.values() for name in needed)
    return list(dict.fromkeys(["input_ids", "attention_mask", *required, *family.told_by, *read]))


def _copied(given: dict[str, Any]) -> dict[str, Any]:
    """Copies on the host, all integers of one device in a single transfer; lists become tensors."""
    host = {name: as_tensor(name, value) for name, value in given.items()}
    for place in {(value.device, value.is_floating_point()) for value in host.values()}:
        sent = {name: value for name, value in host.items() if (value.device, value.is_floating_point()) == place}
        flat = torch.cat([value.detach().flatten() for value in sent.values()])
        flat = flat.float() if flat.dtype == torch.bfloat16 else flat  # numpy has no bfloat16
        parts = torch.split(torch.from_numpy(flat.cpu().numpy()), [value.numel() for value in sent.values()])
        for (name, value), part in zip(sent.items(), parts, strict=True):
            host[name] = part.view(value.shape).to(value.dtype if value.is_floating_point() else torch.long)
    return host


def _inferred(model: "PreTrainedModel", inputs: Mapping[str, Any], ids: Tensor) -> Tensor:
    """The mask that generate() infers where none is given: columns that are no padding."""
    config = inputs.get("generation_config") or model.generation_config
    pad, end = config.pad_token_id, config.eos_token_id
    ends = end if isinstance(end, list) else [end]
    if pad is None or pad in ends:
        return torch.ones_like(ids)
    told: Tensor = ids != pad
    return told


def has_pixels(inputs: Mapping[str, Any]) -> bool:
    """Whether there is an image or a video to encode."""
    return any(inputs.get(name) is not None for name in PIXELS.values())
