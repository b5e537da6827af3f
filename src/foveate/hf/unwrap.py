"""The transformers model inside wrappers that pass everything on to it."""

from typing import TYPE_CHECKING, Any

from foveate.errors import UnsupportedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def unwrap(model: Any) -> "PreTrainedModel":
    """The stock model in a PEFT model, a compiled one (``_orig_mod``) or a parallel one (``module``).

    PEFT's ``base_model`` is something else than transformers', so the wrappers must be taken off first.

    Raises:
        UnsupportedModel: PEFT learned a prompt (prompt, prefix and p-tuning): it ignores the positions given.
    """
    while True:
        modules = getattr(model, "_modules", {})
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            kind = model.active_peft_config.peft_type.value
            raise UnsupportedModel(
                f"PEFT with {kind}, which ignores the positions of tokens kept; "
                "supported are adapters inside layers, such as LoRA"
            )
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif "_orig_mod" in modules:
            model = model._orig_mod
        elif "base_model" in modules:  # PEFT with adapters of several kinds: the tuner, then the model
            model = model.base_model.model
        elif "module" in modules and not hasattr(type(model), "generate"):
            model = model.module
        else:
            stock: PreTrainedModel = model
            return stock
