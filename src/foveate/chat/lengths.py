"""Options of generate() that count the prompt, or read it in parts."""

import copy
from typing import TYPE_CHECKING, Any

from foveate.chat.request import Request
from foveate.errors import InvalidInputs, InvalidOption
from foveate.hf import names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What counts the prompt, and what takes its place where it is set, too.
LIMITS = {"max_length": "max_new_tokens", "min_length": "min_new_tokens"}
# Options that take tokens back, or read the prompt in parts; labels are a forward's.
PARTLY = (
    "assistant_model",
    "assistant_early_exit",
    "prompt_lookup_num_tokens",
    "prefill_chunk_size",
    "labels",
)


def given(model: "PreTrainedModel", arguments: dict[str, Any], name: str) -> Any:
    """An option as generate() finds it: the argument, else the caller's config, else the model's."""
    holders = (arguments.get("generation_config"), model.generation_config)
    values = (arguments.get(name), *(getattr(holder, name, None) for holder in holders))
    return next((value for value in values if value is not None), None)


def rebased(model: "PreTrainedModel", arguments: dict[str, Any], removed: int) -> dict[str, Any]:
    """The caller's limits, less the columns removed, by the way they came; new tokens need nothing.

    Raises:
        InvalidInputs: the prompt is longer than it may become.
    """
    limits = {
        name: value
        for name, newer in LIMITS.items()
        if (value := given(model, arguments, name)) and given(model, arguments, newer) is None
    }
    columns = arguments["input_ids"].shape[1]
    if limits.get("max_length", columns + 1) <= columns:
        raise InvalidInputs(
            f"max_length={limits['max_length']}: the prompt has {columns} tokens; allowed is more, or "
            "max_new_tokens"
        )
    config = copy.deepcopy(arguments.get("generation_config"))
    found: dict[str, Any] = {}
    for name, value in limits.items():
        if config is None or arguments.get(name) is not None:
            found[name] = max(0, value - removed)
        else:  # a config and arguments together are deprecated
            setattr(config, name, max(0, value - removed))
            found["generation_config"] = config
    return found


def check_options(model: "PreTrainedModel", request: Request, arguments: dict[str, Any]) -> None:
    """Refuse what does not go with dropping inside the language model.

    Raises:
        InvalidOption: an option of generate() that takes tokens back, or reads the prompt in parts; labels.
    """
    for name in PARTLY:
        if request.acts_inside and given(model, arguments, name) is not None:
            raise InvalidOption(
                f"{name} with {request.method!r}: allowed with methods that prune the prompt alone"
            )


def check_chunks(model: "PreTrainedModel", arguments: dict[str, Any], gaps: bool, rows: int) -> None:
    """Refuse a prefill in chunks by flash attention where positions of one row have gaps.

    Flash attention takes gaps for the ends of packed sequences, and then confuses the lengths of chunks.

    Raises:
        InvalidOption: it would be one.
    """
    size = given(model, arguments, "prefill_chunk_size")
    if size is not None and gaps and rows == 1 and names.flash(model) and names.rope_index(model) is None:
        raise InvalidOption(
            f"prefill_chunk_size={size} with flash attention and one pruned prompt: allowed with another "
            "attn_implementation, positions='compact', or without it"
        )
