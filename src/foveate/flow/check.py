"""Refuse, before any work, what cannot be pruned soundly."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveate.errors import InvalidInputs, InvalidOption, UnsupportedModel
from foveate.families import FAMILIES, PIXELS, Family
from foveate.hf import names
from foveate.methods import Compose, Inside, Method, Resizing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Arguments that say where tokens are, or stand for them: dropped tokens make them wrong.
SET_BY_PRUNE = (
    "position_ids",
    "inputs_embeds",
    names.ENCODED,
    *("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"),  # of packed sequences
)


def check_method(model: "PreTrainedModel", family: Family, method: Method) -> None:
    """Refuse what is no method, and one that the family cannot serve.

    Raises:
        InvalidOption: a class, a name, anything else.
        UnsupportedModel: the family cannot resize images.
    """
    if isinstance(method, (Inside, Compose)):
        raise InvalidOption(
            f"{method!r} acts inside the language model, which a prompt cannot carry: allowed with foveate.attach"
        )
    if not isinstance(method, Method):
        raise InvalidOption(f"method={method!r}: allowed is an instance such as foveate.SPARE()")
    if isinstance(method, Resizing) and family.resizes is None:
        raise UnsupportedModel(
            f"{type(method).__name__} on {family.name}: its pixels are not understood, so they cannot be resized; "
            f"supported are {', '.join(name for name, known in FAMILIES.items() if known.resizes)}"
        )


def check_inputs(model: "PreTrainedModel", family: Family, inputs: Mapping[str, Any]) -> None:
    """Refuse what cannot be pruned soundly.

    Raises:
        InvalidInputs: as `prune` says.
    """
    if not isinstance(inputs, Mapping):
        raise InvalidInputs(
            f"inputs of type {type(inputs).__name__}: allowed is what the model's processor returned"
        )
    _check_leave_out(model, family, inputs)
    _check_pixels(model, family, inputs)
    mask, ids = inputs.get("attention_mask"), inputs["input_ids"]
    shape = getattr(mask, "shape", type(mask).__name__)
    if ids.dim() != 2 or (mask is not None and shape != ids.shape):
        shapes = f"{tuple(ids.shape)} and {tuple(shape) if isinstance(mask, Tensor) else shape}"
        raise InvalidInputs(f"input_ids and attention_mask of shapes {shapes}: allowed is [B, L] for both")


def check_pads(host: Mapping[str, Any], placeholders: Sequence[int]) -> None:
    """Refuse placeholders that are masked, given host copies of ids and mask.

    Raises:
        InvalidInputs: there are some.
    """
    marks = torch.isin(host["input_ids"], torch.tensor(placeholders))
    hidden = int((marks & ~host["attention_mask"]).sum())
    if hidden:
        raise InvalidInputs(f"attention_mask hides {hidden} image placeholders: allowed is none, prune hides")


def _check_pixels(model: "PreTrainedModel", family: Family, inputs: Mapping[str, Any]) -> None:
    for kind, name in PIXELS.items():
        if inputs.get(name) is not None and kind not in family.kinds:
            raise InvalidInputs(
                f"{name} given to {family.name}: allowed is {' or '.join(family.kinds)}, not {kind}"
            )
    given = [name for name in PIXELS.values() if inputs.get(name) is not None]
    if not given:
        raise InvalidInputs(
            f"no image in the inputs ({', '.join(map(str, inputs)) or 'they are empty'}): allowed is what the "
            "processor returned for text and images; attach() lets text pass"
        )
    for name in ("input_ids", *given):
        if not isinstance(inputs.get(name), Tensor):
            raise InvalidInputs(
                f"{name} is {type(inputs.get(name)).__name__}: allowed is a tensor, as the processor returns it "
                "for an image with return_tensors='pt'"
            )
    for kind in family.kinds:
        needed = [name for name, required in names.encoder_arguments(model, kind).items() if required]
        for name in (*needed, *family.requires.get(kind, ())):
            if PIXELS[kind] in given and inputs.get(name) is None:
                raise InvalidInputs(f"{name} is missing: pass all that the processor returned")


def _check_leave_out(model: "PreTrainedModel", family: Family, inputs: Mapping[str, Any]) -> None:
    cache = names.given_cache(inputs)
    if cache is not None and (not hasattr(cache, "get_seq_length") or cache.get_seq_length() > 0):
        raise InvalidInputs("pixel_values together with a filled KV cache: pass images with an empty cache")
    for name in SET_BY_PRUNE:
        if inputs.get(name) is not None:
            raise InvalidInputs(f"{name} given together with images to prune: leave it out, prune sets it")
    if isinstance(inputs.get("logits_to_keep"), Tensor):
        raise InvalidInputs("logits_to_keep as indices: allowed is a count, columns move when tokens are dropped")
    for kind in family.kinds:
        for name in names.encoder_arguments(
            model, kind
        ):  # such as vision_feature_layer: signals follow the config
            given, set_in_config = inputs.get(name), getattr(model.config, name, None)
            if given is not None and set_in_config is not None and given != set_in_config:
                raise InvalidInputs(f"{name}={given!r}: allowed is the config's {set_in_config!r}; set it there")
