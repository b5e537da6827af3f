"""Load a checkpoint and make a prompt, with one clear line for what is wrong with them."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from foveate import mini
from foveate.bench.defaults import MINI
from foveate.errors import InvalidInputs, UnsupportedModel, first_line
from foveate.families import FAMILIES, family_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PLAIN_TEMPLATE = "USER: {mark}\n{question} ASSISTANT:"  # LLaVA-1.5's own, for a processor without a template


def load(path: str | Path = MINI) -> tuple["PreTrainedModel", Any]:
    """A supported model in eval mode, on the GPU if there is one, and its processor.

    On a CPU, and for mini, it is float32; on a GPU it has the checkpoint's own precision.

    Raises:
        UnsupportedModel: a model type or vision tower without a family; a type is found before weights load.
        InvalidInputs: no checkpoint is there.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    bundled = path == MINI
    path = mini.PATH if bundled else path
    check_type(str(path))
    gpu = torch.cuda.is_available()
    dtype = "auto" if gpu and not bundled else torch.float32
    try:
        processor = AutoProcessor.from_pretrained(path)
        model = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype)
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        RuntimeError,
        SafetensorError,
        StrictDataclassError,
    ) as error:
        # Whatever transformers makes of a damaged checkpoint: shapes that differ, fields of another type.
        raise InvalidInputs(
            f"model {str(path)!r}: it cannot be loaded ({first_line(error).rstrip('.')})"
        ) from error
    family_of(model)
    return model.eval().to("cuda" if gpu else "cpu"), processor


def check_question(question: str) -> None:
    """Refuse a question without a word.

    Raises:
        InvalidInputs: it is empty.
    """
    if not question.strip():
        raise InvalidInputs(f"question {question!r}: it is empty; allowed is text")


def check_length(model: "PreTrainedModel", inputs: Any, new_tokens: int) -> None:
    """Refuse a prompt that is longer, with its answer, than the positions that the language model was made for.

    Tokens that are pruned count: those that stay keep their places.

    Raises:
        InvalidInputs: it is too long.
    """
    config = model.config.get_text_config()
    most = getattr(config, "max_position_embeddings", None)
    ids = inputs["input_ids"]
    length = ids.shape[1]
    if (getattr(config, "rope_parameters", None) or {}).get("mrope_section"):
        # An image takes as many positions there as its longer side: only its text is sure to count token by token.
        length -= int((ids == model.config.image_token_id).sum(dim=1).max())
    if most is not None and length + new_tokens > most:
        raise InvalidInputs(
            f"a prompt of {length} tokens, with {new_tokens} new ones: allowed are {most} in all, the positions "
            "of this language model; ask a shorter question"
        )


def requests(processor: Any, images: Sequence[Image.Image], questions: Sequence[str]) -> Any:
    """Processor inputs, one row per image and question, padded on the left.

    Raises:
        InvalidInputs: a question is empty, or holds the mark that stands for an image.
    """
    mark = str(getattr(processor, "image_token", "<image>"))
    for question in questions:
        check_question(question)
        if mark in question:
            raise InvalidInputs(f"question {question!r}: {mark} marks need one image each, and this one is given")
    prompts = [_prompt(processor, question, mark) for question in questions]
    return processor(images=list(images), text=prompts, padding=True, padding_side="left", return_tensors="pt")


def _prompt(processor: Any, question: str, mark: str) -> str:
    if not getattr(processor, "chat_template", None):
        return PLAIN_TEMPLATE.format(mark=mark, question=question)
    content = [{"type": "image"}, {"type": "text", "text": question}]
    turns = [{"role": "user", "content": content}]
    return str(processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))


def check_type(path: str) -> None:
    """Refuse a checkpoint by its configuration alone.

    Raises:
        InvalidInputs: there is none.
        UnsupportedModel: its type has no family.
    """
    from transformers import PretrainedConfig

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries
    if _is_a_path(path) and not Path(path).is_dir():
        reason = "a file; allowed is a checkpoint's folder" if Path(path).exists() else "there is no such folder"
        raise InvalidInputs(f"model {path!r}: {reason}")
    try:
        config = PretrainedConfig.get_config_dict(path)[0]
    except (OSError, ValueError) as error:
        raise InvalidInputs(f"model {path!r}: no checkpoint there ({first_line(error).rstrip('.')})") from error
    if "model_type" not in config:
        raise InvalidInputs(f"model {path!r}: no checkpoint there (no config.json with a model_type)")
    if config["model_type"] not in FAMILIES:
        known = ", ".join(f"{name} ({family.name})" for name, family in FAMILIES.items())
        raise UnsupportedModel(f"model type {config['model_type']!r} of {path!r}: supported are {known}")


def _is_a_path(path: str) -> bool:
    """Whether it can only be a folder of this machine: a hub's id is ``name`` or ``owner/name``."""
    return Path(path).exists() or path.startswith((".", "~", "/")) or path.count("/") > 1 or "\\" in path
