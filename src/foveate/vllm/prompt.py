"""The question that belongs to each image of a prompt, and whether the prompt ends with one."""

from collections.abc import Sequence
from typing import Any

from foveate.question import question_at
from foveate.relevance import special_tokens


def questions_of_images(ids: Sequence[int], image_token: int, images: int, tokenizer: Any) -> list[str]:
    """The text of the user turn that holds each image.

    Not the last turn's, as `foveate.prune` takes: the choice is part of the image's identity in vLLM's caches, so
    it must not change while a conversation goes on.

    Args:
        ids: the prompt, one ``image_token`` per image.
        image_token: the id.
        images: how many there are.
        tokenizer: the model's.
    """
    mark = str(tokenizer.decode([image_token], skip_special_tokens=False))
    special = [*special_tokens(tokenizer), mark]
    text = str(tokenizer.decode(list(ids), skip_special_tokens=False))
    places = []
    start = 0
    for _ in range(images):
        found = text.find(mark, start)  # fewer marks than images: vLLM says so itself, later
        places.append(max(found, 0))
        start = found + len(mark) if found >= 0 else start
    return [question_at(text, place, special) for place in places]


def ends_with_image(ids: Sequence[int], image_token: int) -> bool:
    """Whether the last token's query, which writes the first answer token, is an image's."""
    return bool(ids) and ids[-1] == image_token
