"""Which models blocks are open on."""

import threading
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from foveate.chat.forwards import Attachment
from foveate.chat.installed import Installed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Registry:
    """The models that blocks are open on. A model that dies is forgotten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_model: WeakKeyDictionary[PreTrainedModel, Installed] = WeakKeyDictionary()

    def of(self, model: Any) -> Installed | None:
        """What is changed on a model; None where no block is open."""
        return self._by_model.get(model)

    def enter(self, model: "PreTrainedModel", attachment: Attachment, generate: Any) -> None:
        """Let a block rule."""
        with self._lock:
            if model not in self._by_model:
                self._by_model[model] = Installed(model, generate)
            self._by_model[model].blocks.append(attachment)

    def leave(self, model: "PreTrainedModel", attachment: Attachment) -> None:
        """End a block; the last one restores the model."""
        with self._lock:
            installed = self._by_model[model]
            installed.blocks.remove(attachment)
            if not installed.blocks:
                installed.undo()
                del self._by_model[model]
