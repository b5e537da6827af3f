"""Files, bytes and images of any mode to RGB: upright, in sRGB, over white."""

import io
import os
import re
import stat
import warnings
from contextlib import nullcontext, suppress
from typing import Any

from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from foveate.errors import InvalidInputs, first_line
from foveate.pictures.grey import in_eight_bits

Source = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/|data:", re.IGNORECASE)
FEW_BITS = {"L;2": 85, "L;4": 17}  # Pillow scales pixels of a PNG by these, but not its transparent level
SPACES = {"RGB ": "RGB", "CMYK": "CMYK", "GRAY": "L"}  # the colour space of an ICC profile: the mode of its pixels


def load_picture(source: Source, turn: bool = True) -> Image.Image:
    """A picture in mode RGB, as a viewer shows it.

    It is turned by its EXIF orientation, brought to sRGB by its ICC profile (a broken one is ignored) and laid
    over white. Integers of 12 and 16 bits are scaled by their range, those of 32 by the smallest of 8, 16, 31 and
    32 bits that holds them all, floats in [0, 1] by that; other floats and integers below 0 are scaled from the
    smallest to the largest. A file of several pictures gives its first.

    Args:
        source: the path or the bytes of a file; or an open image, taken at its present frame and not changed.
        turn: by the EXIF orientation. Processors of transformers leave an open image as it lies; so does False.

    Raises:
        InvalidInputs: no such file, no image, a damaged one, one above Pillow's limit of pixels, or pixels whose
            brightness is not known.
    """
    try:
        with warnings.catch_warnings(action="ignore"), _opened(source) as image:
            return _shown(image, turn)
    except Exception as error:  # whatever a decoder makes of a damaged file
        raise InvalidInputs(f"image {_name(source)}: {_reason(error)}") from error


def _name(source: Source) -> str:
    if isinstance(source, Image.Image):
        return f"in memory ({source.mode}, {source.width} x {source.height})"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"of {memoryview(source).nbytes:,} bytes"
    return repr(str(source)[:200])


def _reason(error: Exception) -> str:
    if isinstance(error, InvalidInputs):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        return "not an image that can be read"
    told = (getattr(error, "strerror", None) or first_line(error)).rstrip(".")
    if isinstance(error, Image.DecompressionBombError):
        told = re.sub(r"\d+", lambda number: f"{int(number[0]):,}", told.split(", could")[0])
    return f"it cannot be read ({told})"


def _opened(source: Source) -> Any:
    """A context with the image; one that the caller opened stays open."""
    if isinstance(source, Image.Image):
        return nullcontext(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return Image.open(io.BytesIO(source))
    if not isinstance(source, str | os.PathLike):
        raise InvalidInputs("allowed are a path, the bytes of a file, and a PIL image")
    if ADDRESS.match(str(source)) and not os.path.exists(source):
        raise InvalidInputs("an address; allowed are files")
    status = os.stat(source)
    if not stat.S_ISREG(status.st_mode):
        raise InvalidInputs("a folder, not an image" if stat.S_ISDIR(status.st_mode) else "not a regular file")
    if not status.st_size:
        raise InvalidInputs("an empty file, not an image")
    return Image.open(source)


def _shown(image: Image.Image, turn: bool) -> Image.Image:
    if 0 in image.size:
        raise InvalidInputs("it has no pixels")
    tiles = getattr(image, "tile", None)  # gone once the pixels are read
    stored = tiles[0][3] if tiles and image.format == "PNG" else image.mode
    image.load()
    upright = _turned(image) if turn else image.copy()
    if "transparency" in upright.info:
        if stored == "RGB;16B":
            raise InvalidInputs("it has a transparent colour of 16 bits, of which Pillow reads 8")
        upright.info["transparency"] *= FEW_BITS.get(stored, 1)
    profile = upright.info.get("icc_profile")
    colours, alpha = _without_alpha(in_eight_bits(upright, image))
    shown = Image.new("RGB", colours.size, "white")
    shown.paste(_in_srgb(colours, profile), mask=alpha)
    return shown


def _turned(image: Image.Image) -> Image.Image:
    with suppress(Exception):  # damaged EXIF data raises errors of many kinds
        return ImageOps.exif_transpose(image)
    return image.copy()


def _without_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    palette = image.palette.mode if image.mode == "P" and image.palette else ""
    one_is_clear = "transparency" in image.info and image.mode in ("1", "L", "P", "RGB")
    if not one_is_clear and not (image.mode + palette).upper().endswith("A"):
        return image, None
    whole = image.convert("LA" if image.mode in ("1", "L", "LA", "La") else "RGBA")
    *bands, alpha = whole.split()
    return Image.merge(whole.mode[:-1], bands), alpha


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """In mode RGB; a profile for another colour space than the pixels' is ignored like a broken one."""
    pixels = image if image.mode in ("L", "CMYK", "LAB") else image.convert("RGB")
    if profile:
        try:
            described = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if SPACES.get(described.profile.xcolor_space) == pixels.mode:
                return _through(pixels, described)
        except (OSError, ValueError, TypeError, ImageCms.PyCMSError):
            pass
    return pixels.convert("RGB")


def _through(pixels: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    srgb = ImageCms.createProfile("sRGB")
    if pixels.mode != "L":
        return ImageCms.profileToProfile(pixels, profile, srgb, outputMode="RGB") or pixels
    # One level at a time and exactly: at its usual speed the library is up to 9 levels off in dark grey.
    levels = Image.frombytes("L", (256, 1), bytes(range(256)))
    exact = ImageCms.Flags.NOOPTIMIZE
    colours = ImageCms.profileToProfile(levels, profile, srgb, outputMode="RGB", flags=exact) or levels
    shown = pixels.copy()
    shown.putpalette(colours.tobytes())
    return shown.convert("RGB")
