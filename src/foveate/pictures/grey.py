"""Grey of more than 8 bits, scaled to 8."""

import numpy as np
from PIL import Image

from foveate.errors import InvalidInputs

BITS, INTERPRETATION, SAMPLES = 258, 262, 339  # TIFF tags
WHITE_IS_ZERO, UNSIGNED, SIGNED = 0, 1, 2  # values of the latter two
SIXTEEN = ("PNG", "PPM", "JPEG2000")  # Pillow scales what has more than 8 bits in these formats to 16
# White, by bits without the sign. What has 31 or 32 often fills fewer: the smallest range that fits is taken.
WIDE = (255, 65535, 2**31 - 1, 2**32 - 1)
WHITE = {12: (4095,), 15: (32767,), 16: (65535,), 31: WIDE, 32: WIDE}


def in_eight_bits(image: Image.Image, file: Image.Image) -> Image.Image:
    """Integers of more than 8 bits and floats as grey of 8, with alpha where a level is transparent.

    Args:
        image: upright.
        file: what it was made of, with the format and, of TIFF, its tags.

    Raises:
        InvalidInputs: pixels whose brightness is not known.
    """
    tags = getattr(file, "tag_v2", {})
    signed = tags.get(SAMPLES, (UNSIGNED,))[0] == SIGNED
    if image.mode[0] not in "IF":
        if signed:
            raise InvalidInputs("it has signed pixels of 8 bits, of which Pillow loses the sign")
        return image
    pixels = np.asarray(image)
    if image.mode == "I" and tags and not signed:
        pixels = pixels.view(np.uint32)  # Pillow holds them as signed
    levels = pixels.astype(np.float64)
    low, high = float(levels.min()), float(levels.max())
    low, high = _range(low, high, 0 if image.mode == "F" else _bits(file, image.mode) - signed)
    levels -= low
    levels *= 255 / (high - low)
    grey = np.rint(levels).astype(np.uint8)
    shown = Image.fromarray(255 - grey if tags.get(INTERPRETATION) == WHITE_IS_ZERO else grey)
    if "transparency" in image.info:
        shown.putalpha(Image.fromarray(np.uint8(255) * (pixels != image.info["transparency"])))
    return shown


def _bits(file: Image.Image, mode: str) -> int:
    if file.format == "TIFF":
        return int(file.tag_v2[BITS][0])  # type: ignore[attr-defined]
    if file.format in SIXTEEN:
        return 16
    if file.format is None:  # made in memory
        return 32 if mode == "I" else 16
    raise InvalidInputs(f"it has grey of more than 8 bits in the format {file.format}, whose range is not known")


def _range(low: float, high: float, bits: int) -> tuple[float, float]:
    """The levels of black and white of pixels that lie between two; of floats where they have 0 bits."""
    if not np.isfinite([low, high]).all():
        raise InvalidInputs("it has pixels that are not finite")
    if low >= 0 and (bits or high <= 1):
        return 0, next(white for white in WHITE[bits] if high <= white) if bits else 1
    if low == high:
        raise InvalidInputs(f"all its pixels are {low:g}, whose brightness is not known; allowed are 0 to 1")
    return low, high
