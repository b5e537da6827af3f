"""The tokenizer and the chat template that a model's prompts are written with."""

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from foveate.errors import InvalidOption, MissingSignal
from foveate.text.memory import remembered

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def tokenizer_for(model: "PreTrainedModel", processor: Any) -> "PreTrainedTokenizerBase | None":
    """The processor's tokenizer (or the tokenizer itself), else that beside the model's checkpoint.

    The latter is looked for once per model.

    Raises:
        InvalidOption: ``processor`` is neither.
        MissingSignal: the tokenizer cannot tell where in the text its tokens are.
    """
    if processor is None:
        tokenizer = _beside(model, model.name_or_path)
    else:
        tokenizer = getattr(processor, "tokenizer", processor)
        if not hasattr(tokenizer, "all_special_tokens"):
            raise InvalidOption(
                f"processor of type {type(processor).__name__}: allowed are the model's processor or its tokenizer"
            )
    if tokenizer is not None and not tokenizer.is_fast:
        raise MissingSignal(f"{type(tokenizer).__name__} gives no token offsets: a fast tokenizer is needed")
    return tokenizer


def template_of(processor: Any) -> str | None:
    """The chat template of a processor or a tokenizer; None if it has none."""
    template = getattr(processor, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) and template else None


def tokenizer_at(path: str) -> "PreTrainedTokenizerBase | None":
    """The tokenizer of a checkpoint, loaded once; None if there is none."""
    try:
        return _load(path) if path else None
    except (OSError, ValueError):  # a model built from its config has none
        return None


@remembered(last=1)
def _beside(model: "PreTrainedModel", path: str) -> "PreTrainedTokenizerBase | None":
    return tokenizer_at(path)


@lru_cache(maxsize=8)
def _load(path: str) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    return tokenizer
