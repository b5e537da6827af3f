"""Several methods in a row: one before the language model, others inside it."""

from dataclasses import dataclass

from foveate.errors import InvalidOption
from foveate.methods.base import Method
from foveate.methods.inside import Inside


@dataclass(frozen=True, init=False)
class Compose:
    """Prune the prompt with one method, then go on inside the language model with others.

    ::

        foveate.attach(model, foveate.Compose(foveate.SPARE(), foveate.FastV(layer=2)), keep=(128, 64))

    Every part has a budget of its own: of the image's tokens, then of those that enter the language model;
    ``report.tokens_per_layer`` says what they come to.

    Attributes:
        parts: at most one `Method`, first, and `Inside` ones.

    Raises:
        InvalidOption: other parts.
    """

    parts: tuple[Method | Inside, ...]

    def __init__(self, *parts: Method | Inside) -> None:
        object.__setattr__(self, "parts", parts)
        later = parts[1:] if parts and isinstance(parts[0], Method) else parts
        if not later or not all(isinstance(part, Inside) for part in later):
            raise InvalidOption(
                f"Compose{parts!r}: allowed are at most one method that prunes the prompt, first, and one or more "
                "that drop inside the language model, such as FastV()"
            )
