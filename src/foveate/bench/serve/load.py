"""What is asked: pictures of noise, and questions about each, the same for every arm of a round."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

THINGS = ("dog", "cup", "ladder", "bicycle", "window", "lamp", "boat", "clock", "chair", "kite")
ASKED = (
    "What colour is the {} in this picture?",
    "Where is the {}, and what is next to it?",
    "Is there a {} behind the house?",
    "How many of these are as large as the {}?",
)


@dataclass(frozen=True)
class Load:
    """What is sent in each round.

    Attributes:
        images: pictures per round.
        questions: requests about each picture.
        new_tokens: length of every answer.
        size: pixels, width and height.
    """

    images: int
    questions: int
    new_tokens: int
    size: tuple[int, int]

    @property
    def requests(self) -> int:
        """Of a round."""
        return self.images * self.questions

    def round(self, seed: int) -> Iterator[tuple[str, str]]:
        """Data URL and question of each request; all pictures are asked about once before any is again."""
        urls = [_data_url((seed, index), self.size) for index in range(self.images)]
        for turn in range(self.questions):
            for index, url in enumerate(urls):
                which = index + turn
                yield url, ASKED[turn % len(ASKED)].format(THINGS[which % len(THINGS)])


def _data_url(seed: tuple[int, int], size: tuple[int, int]) -> str:
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
