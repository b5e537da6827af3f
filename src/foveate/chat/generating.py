"""generate() inside a block: the prompt is pruned on its way in, and whole again on its way out."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch

from foveate.chat.following import TEXT, next_turn
from foveate.chat.forwards import Attachment
from foveate.chat.full_prompt import FullPrompt
from foveate.chat.installed import Installed
from foveate.chat.lengths import check_chunks, check_options, given, rebased
from foveate.chat.memory import Memory, forget, memory_of
from foveate.chat.registry import Registry
from foveate.errors import InvalidInputs
from foveate.flow.prompt import has_pixels
from foveate.hf import names
from foveate.hf.unwrap import unwrap
from foveate.inside.dropping import Dropping

# By model, so that nested blocks and several threads find each other's; threads share it under a lock.
INSTALLED = Registry()


def generate(installed: Installed, *args: Any, **kwargs: Any) -> Any:
    """The sequences of a pruned prompt, or of a turn on its cache, in the caller's columns.

    Raises:
        FoveateError: as `prune`, and for options that do not go with it.
    """
    arguments = {**dict(zip(installed.generate_names, args, strict=False)), **kwargs}
    if arguments.get("inputs") is not None:  # generate's own name for the first argument
        arguments["input_ids"] = arguments.pop("inputs")
    newest, cache = installed.blocks[-1:], names.given_cache(arguments)
    memory, pixels = memory_of(cache), has_pixels(arguments)
    if not newest or (installed.generates and not pixels and memory is None):  # a draft of a pruned prompt
        return installed.stock_generate(**arguments)
    if arguments.get(names.ENCODED) is not None:
        raise InvalidInputs(f"{names.ENCODED} while pruning is attached: pass the pixels, or leave the block")
    if pixels:
        return _first(installed, newest[0], arguments, cache)
    if memory is not None and int(cache.get_seq_length()) == 0:  # it was reset
        forget(cache)
        memory = None
    if memory is None:
        return installed.stock_generate(**arguments)
    return _later(installed, newest[0], arguments, cache, memory)


def _first(installed: Installed, attachment: Attachment, arguments: dict[str, Any], cache: Any) -> Any:
    """A prompt with images."""
    model = installed.model
    unwrap(getattr(model.prepare_inputs_for_generation, "__self__", model))  # PEFT's, of a learned prompt
    with torch.no_grad():  # generate's own no_grad begins later
        caches = given(model, arguments, "use_cache") is not False
        asked, memory = installed.ask(attachment, arguments, caches)
    with asked:
        gaps = attachment.request.settings.positions == "original"
        check_chunks(model, arguments, gaps, len(arguments["input_ids"]))
        forget(cache)
        with _remembered(memory, cache) as filled:
            output = _asked_of_stock(installed, arguments, dict(asked.pruned), asked.dropped)
            filled.append(names.returned_cache(output)[1])
    attachment.record(asked)
    return output


def _later(
    installed: Installed, attachment: Attachment, arguments: dict[str, Any], cache: Any, memory: Memory
) -> Any:
    """A text on the cache of a pruned prompt.

    Raises:
        InvalidInputs: as `next_turn`, or `use_cache=False`: stock then reads all of the text once more.
    """
    if given(installed.model, arguments, "use_cache") is False:
        raise InvalidInputs("use_cache=False together with a filled KV cache: allowed is one of the two")
    memory, turn = next_turn(installed.model, memory, cache, arguments)
    check_chunks(installed.model, arguments, True, len(turn["input_ids"]))
    dropped = None if memory.live is None else memory.live.dropped
    if dropped is not None:
        check_options(installed.model, attachment.request, arguments)
    rest = {name: value for name, value in names.without_cache(arguments).items() if name not in TEXT}
    turn = {**rest, **turn, names.cache_argument(installed.model): cache}
    forget(cache)  # decoding steps find nothing to look up
    with _remembered(memory, cache), nullcontext() if dropped is None else dropped.hooked():
        return _asked_of_stock(installed, arguments, turn, dropped)


@contextmanager
def _remembered(memory: Memory, cache: Any) -> Iterator[list[Any]]:
    """Write on the cache what it holds when the call ends, or that it was interrupted half-way."""
    filled: list[Any] = []
    try:
        yield filled
    except BaseException:
        if cache is not None and int(cache.get_seq_length()) == memory.length:  # refused before it began
            memory.write(cache)
        else:
            memory.begin(cache)
        raise
    found = next((given for given in filled if given is not None), cache)
    memory.end(found)


def _asked_of_stock(
    installed: Installed, arguments: dict[str, Any], pruned: dict[str, Any], dropped: Dropping | None
) -> Any:
    """Stock's generate() of what is pruned, with all that counts or reads the prompt seeing the caller's."""
    prompt, width = arguments["input_ids"], pruned["input_ids"].shape[1]
    full = FullPrompt(prompt, width)
    limits = rebased(installed.model, arguments, prompt.shape[1] - width)
    steps = {} if dropped is None else {"disable_compile": True}  # hooks keep account of what is left
    with ExitStack() as drafting:
        drafting.enter_context(installed.generating())
        assistant = arguments.get("assistant_model")
        drafts = None if assistant is None else INSTALLED.of(unwrap(assistant))
        if drafts is not None:
            drafting.enter_context(drafts.generating())
        return full.output(installed.stock_generate(**{**pruned, **limits, **steps, **full.shown(arguments)}))
