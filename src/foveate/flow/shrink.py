"""From the tokens chosen to a shorter prompt, its positions, and the encoder output that fits it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveate.errors import InvalidInputs
from foveate.families import Family
from foveate.flow.choose import Chosen
from foveate.flow.plan import Plan
from foveate.flow.prompt import as_tensor
from foveate.hf import names
from foveate.hf.container import encoder_output

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Arguments with one entry per token of the prompt, and what stands there in padding.
PER_TOKEN = {
    "input_ids": 0,
    "token_type_ids": 0,
    "mm_token_type_ids": 0,
    "labels": -100,
    "shift_labels": -100,
}
# Arguments that are made anew, or that no pruned prompt may carry; a prompt's cache_position says nothing.
REPLACED = {"attention_mask", "position_ids", "cache_position"}


@dataclass(frozen=True, eq=False)
class Features:
    """What stands in the places kept, of all images or all videos of a prompt.

    Attributes:
        rows: ``[n, D]`` of each batch row that has any: generate() repeats whole entries for beams, in every
            family.
        deepstack: per layer, the same.
    """

    rows: list[Tensor]
    deepstack: list[list[Tensor]]

    def detached(self) -> "Features":
        """The same without the graph that gradients would flow through."""
        layers = [[row.detach() for row in layer] for layer in self.deepstack]
        return Features([row.detach() for row in self.rows], layers)


@dataclass(frozen=True, eq=False)
class Shrunk(Mapping[str, Any]):
    """Keyword arguments for ``model.generate`` or ``model(...)``, one column per token that is left.

    The encoder output is built afresh at every access: generate() expands it in place for beams, and the same
    pruned prompt may be used again.

    Attributes:
        tensors: all other arguments.
        features: by kind, ``image`` or ``video``.
        rope_deltas: ``[B, 1]``, how far the next position is ahead of the number of tokens before it.
        columns: of the prompt before.
    """

    tensors: dict[str, Any]
    features: dict[str, Features]
    rope_deltas: Tensor
    columns: int

    def detached(self) -> "Shrunk":
        """The same without the graph that gradients would flow through."""
        return replace(self, features={kind: found.detached() for kind, found in self.features.items()})

    def __getitem__(self, key: str) -> Any:
        if key == names.ENCODED:
            return {kind: encoder_output(found.rows, found.deepstack) for kind, found in self.features.items()}
        return self.tensors[key]

    def __iter__(self) -> Iterator[str]:
        yield from self.tensors
        yield names.ENCODED

    def __len__(self) -> int:
        return len(self.tensors) + 1


def shrink(
    model: "PreTrainedModel",
    family: Family,
    chosen: Chosen,
    features: Tensor,
    deepstack: Sequence[Tensor],
    use_cache: bool | None = True,
) -> Shrunk:
    """The prompt with the columns of the tokens kept, and what stands in them.

    Columns keep their order. Rows are padded in front, as far as they lose more than others.

    Args:
        model: unwrapped.
        family: the model's.
        chosen: the tokens that stay.
        features: ``[K, D]``, what stands in their places, in prompt order.
        deepstack: per layer, the same of what the language model adds.
        use_cache: what the prompt carries of it; None for nothing.

    Raises:
        InvalidInputs: a tensor that looks like one entry per token, of a name that is not known.
    """
    plan = chosen.plan
    inputs, device = plan.prompt.inputs, plan.prompt.device
    consumed = {name for kind in family.kinds for name in names.encoder_arguments(model, kind)}
    others = {name: value for name, value in inputs.items() if name not in consumed and name not in REPLACED}
    heard = names.encoder_arguments(model, "audio")  # the model encodes sound itself
    check_per_token({name: value for name, value in others.items() if name not in heard}, plan.prompt.ids.shape)
    source = source_of(chosen, device)
    tensors: dict[str, Any] = {}
    for name, value in others.items():
        cut = name in PER_TOKEN and value is not None
        tensors[name] = _cut(model, name, as_tensor(name, value), plan, source) if cut else value
    mask = plan.mask.long().to(device) if plan.mask is not None else _masked(plan, source)
    position_ids, deltas = _positions(model, family, plan, source, mask)
    tensors |= {"attention_mask": mask, "position_ids": position_ids}
    tensors |= {} if use_cache is None else {"use_cache": use_cache}
    return Shrunk(tensors, _features(plan, features, deepstack), deltas, plan.prompt.ids.shape[1])


def check_per_token(arguments: Mapping[str, Any], shape: torch.Size) -> None:
    """Refuse a tensor with one entry per token of the prompt, whose fill in padding is not known.

    Raises:
        InvalidInputs: there is one, or one of those known has another shape.
    """
    for name, value in arguments.items():
        if name in PER_TOKEN and value is not None and (given := as_tensor(name, value).shape) != shape:
            raise InvalidInputs(f"{name} of shape {list(given)}: allowed is that of input_ids, {list(shape)}")
        if name not in PER_TOKEN and isinstance(value, Tensor) and value.shape[:2] == shape:
            raise InvalidInputs(
                f"{name} of shape {list(value.shape)} looks like one entry per token of the prompt: allowed are "
                f"{', '.join(PER_TOKEN)}; leave it out, or cut it by Pruned.columns_kept"
            )


def source_of(chosen: Chosen, device: torch.device) -> Tensor:
    """``[B, L']``: for each column, the column of the full prompt that it comes from; any in added padding."""
    plan = chosen.plan
    source = plan.template.to(device)
    if chosen.ascending is None:
        return source
    columns = torch.cat([image.columns for image in plan.images]).to(device)[chosen.ascending[0].to(device)]
    source = source.flatten().scatter(0, plan.slots.to(device), columns).view_as(source)
    if plan.is_solid:
        return source
    # Text stands between the tokens of an image: where, hangs on which of them stay. Added padding stays in front.
    behind = source.masked_fill(plan.added.to(device), -1).sort(dim=1).indices
    return source.gather(1, behind)


def _cut(model: "PreTrainedModel", name: str, value: Tensor, plan: Plan, source: Tensor) -> Tensor:
    """``[B, L']`` of ``value [B, L]``."""
    if name == "shift_labels":  # the label of a column is the next column's token: the next that is left
        return _next(value, plan, source)
    found = value.gather(1, source.to(value.device))
    if name == "input_ids":
        bare = ~(plan.texts.any(dim=1) | ~plan.prompt.attended.all(dim=1))
        return found.masked_fill(plan.added.to(found.device), _pad_id(model)) if bool(bare.any()) else found
    if name != "labels" or not bool(plan.added.any()):
        return found
    # A prompt's first token is nobody's next one: behind added padding it must not become one.
    unasked = plan.added | plan.added.roll(1, dims=1)
    return found.masked_fill(unasked.to(found.device), _ignored(plan))


def _next(labels: Tensor, plan: Plan, source: Tensor) -> Tensor:
    """Labels that are shifted already: of each column, that of the column before the next one left."""
    following = torch.cat([source[:, 1:] - 1, source[:, -1:]], dim=1).clamp(min=0)
    found = labels.gather(1, following.to(labels.device))
    return found.masked_fill(plan.added.to(found.device), _ignored(plan))


def _ignored(plan: Plan) -> int:
    """The label that the loss leaves out."""
    return int(plan.prompt.inputs.get("ignore_index", PER_TOKEN["labels"]))


def _masked(plan: Plan, source: Tensor) -> Tensor:
    """``[B, L']``: the mask, where padding lies within an image and so hangs on which tokens stay."""
    attended = plan.prompt.attended.long().to(source.device)
    return attended.gather(1, source).masked_fill(plan.added.to(source.device), 0)


def counted(mask: Tensor) -> Tensor:
    """Position ids as transformers derives them from a mask: counting attended columns."""
    return (mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def _positions(
    model: "PreTrainedModel", family: Family, plan: Plan, source: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """``[B, L']`` position ids, or ``[1 + axes, B, L']``; and ``[B, 1]`` rope deltas."""
    axes = family.positions(model, plan.prompt.known)  # [axes, B, L] on the host, or None
    device = source.device
    if plan.settings.positions == "compact":
        ids = counted(mask if plan.mask is None else plan.mask).to(device)
        ids = ids if axes is None else ids.expand(len(axes) + 1, *ids.shape)
        return ids, torch.zeros(len(mask), 1, dtype=torch.long).to(device)
    full = plan.full_positions if axes is None else axes
    cut = full.to(device).gather(-1, source.expand(full.shape[:-2] + source.shape))
    if axes is None:
        return cut, _deltas(plan, full[None], cut[None], mask)
    # The first axis tells transformers where sequences begin; without gaps, there is one per row.
    first = counted(mask if plan.mask is None else plan.mask).to(device)
    return torch.cat([first[None], cut]), _deltas(plan, full, cut, mask)


def _deltas(plan: Plan, full: Tensor, cut: Tensor, mask: Tensor) -> Tensor:
    """``[B, 1]``: the position after the prompt, less the number of its tokens."""
    attended = plan.prompt.attended
    after = torch.tensor(plan.attended_after)[:, None]
    latest = full.amax(dim=0).masked_fill(~attended, 0)
    text = latest.masked_fill(~plan.texts, 0).amax(dim=1, keepdim=True)
    if bool((text >= latest.amax(dim=1, keepdim=True)).all()):  # text comes last, whichever tokens stay
        return (text + 1 - after).to(cut.device)
    return cut.amax(dim=0).masked_fill(mask == 0, 0).amax(dim=1, keepdim=True) + 1 - after.to(cut.device)


def _pad_id(model: "PreTrainedModel") -> int:
    """An id for columns that are masked: any serves that is no placeholder."""
    marks = {getattr(model.config, f"{kind}_token_id", None) for kind in ("image", "video")}
    for config in (model.generation_config, model.config, model.config.get_text_config()):
        token = getattr(config, "pad_token_id", None)
        if isinstance(token, int) and token >= 0 and token not in marks:
            return token
    return 0


def _features(plan: Plan, features: Tensor, deepstack: Sequence[Tensor]) -> dict[str, Features]:
    """By kind. The images of a row follow one another, and all images come before all videos."""
    sizes: dict[tuple[str, int], int] = {}
    for image, count in zip(plan.images, plan.counts, strict=True):
        sizes[image.kind, image.row] = sizes.get((image.kind, image.row), 0) + count
    rows, *layers = (torch.split(values, list(sizes.values())) for values in (features, *deepstack))
    found: dict[str, Features] = {}
    for kind in dict.fromkeys(image.kind for image in plan.images):
        which = [number for number, (of, _) in enumerate(sizes) if of == kind]
        own = [[layer[number] for number in which] for layer in layers]
        found[kind] = Features([rows[number] for number in which], own)
    return found
