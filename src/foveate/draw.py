"""Pictures of what was kept: the tokens of one image, and several such pictures side by side."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from foveate.errors import InvalidInputs
from foveate.families import View
from foveate.hf import names
from foveate.pictures import load_picture
from foveate.select.engine import on_host_unless_told

Panel = tuple[str, Image.Image]

LONGER_SIDE = 576  # pixels of a picture of kept tokens, rounded up to whole patches
DIMMED, LIFT = 0.3, 44  # a dropped patch keeps this share of its brightness, over a dark grey
OUTLINE = (255, 196, 0)
LINE = 2

PAPER, INK = (255, 255, 255), (24, 24, 27)
MARGIN, FONT_SIZE, COLUMNS, TITLE_LINES = 24, 22, 3, 2
NARROWEST = 96  # pixels of a column, for its title
GAP = 6  # pixels between a title and its picture


def kept_tokens(image: Image.Image, grid: tuple[int, int], kept: Tensor | Iterable[int]) -> Image.Image:
    """The image with the patches of dropped tokens grey and dim, and those of kept tokens as they are.

    Kept areas are outlined, on the dropped side: no pixel of a kept patch differs from `enlarged`.

    Args:
        image: what the model saw (`seen_image`), so that patches and pixels align.
        grid: ``(height, width)`` in tokens.
        kept: raster indices into the grid.

    Raises:
        InvalidInputs: an index outside the grid.
    """
    height, width = grid
    indices = kept.tolist() if isinstance(kept, Tensor) else [int(index) for index in kept]
    if any(not 0 <= index < height * width for index in indices):
        raise InvalidInputs(f"kept indices {min(indices)}..{max(indices)}: allowed are 0..{height * width - 1}")
    picture = enlarged(image, grid)
    cell = picture.width // width
    flags = np.zeros(height * width, dtype=bool)
    flags[indices] = True
    inside = flags.reshape(height, width).repeat(cell, axis=0).repeat(cell, axis=1)
    pixels = np.asarray(picture)
    grey = np.asarray(picture.convert("L"), dtype=np.float32)[..., None] * DIMMED + LIFT
    shown = np.where(inside[..., None], pixels, np.rint(grey).astype(np.uint8))
    shown[_grown(inside, LINE) & ~inside] = OUTLINE
    return Image.fromarray(shown)


def kept_views(views: Sequence[View], pictures: Image.Image | Sequence[Image.Image]) -> list[Panel]:
    """A panel for `contact_sheet` of each view: the whole image, its tiles joined, frames of a video.

    Args:
        views: `Pruned.views`.
        pictures: the image; or the frames of the video, all that were sampled. A view that stands for several
            of them is drawn over the first.

    Raises:
        InvalidInputs: no picture.
    """
    shown = [pictures] if isinstance(pictures, Image.Image) else list(pictures)
    if not shown:
        raise InvalidInputs("no pictures: allowed are the image, or the frames of the video")
    alone = len(shown) == 1
    return [
        (view.name, kept_tokens(shown[0 if alone else number * len(shown) // len(views)], view.grid, view.kept))
        for number, view in enumerate(views)
    ]


def enlarged(image: Image.Image, grid: tuple[int, int]) -> Image.Image:
    """The image in RGB, so large that every patch is a whole number of pixels, the same each way.

    Raises:
        InvalidInputs: a grid without tokens, or pixels that `load_picture` refuses.
    """
    height, width = grid
    if min(grid) < 1:
        raise InvalidInputs(f"grid {height} x {width}: allowed is 1 x 1 or more")
    cell = -(-LONGER_SIDE // max(height, width))
    return load_picture(image, turn=False).resize((width * cell, height * cell), Image.Resampling.BICUBIC)


@on_host_unless_told
def seen_image(image: Image.Image, pixel_values: Tensor, processor: Any) -> Image.Image:
    """The picture that the model saw, resized and cropped: pixel values ``[1, 3, H, W]``, de-normalised.

    Pixel values of another shape (tiles, patches) are parts of the whole ``image``, which is then given back.
    """
    if pixel_values.dim() != 4 or len(pixel_values) != 1:
        return image
    images = getattr(processor, "image_processor", processor)
    mean, deviation = (torch.tensor(names.at(images, f"image_{what}"))[:, None, None] for what in ("mean", "std"))
    colours = pixel_values[0].detach().float().cpu() * deviation + mean
    pixels = (colours.clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def contact_sheet(panels: Sequence[Panel], heading: str = "") -> Image.Image:
    """Titled pictures in rows of three, under a heading.

    What does not fit a line is wrapped, what does not fit two is cut.

    Raises:
        InvalidInputs: no panel.
    """
    if not panels:
        raise InvalidInputs("no panels: a contact sheet needs one or more")
    panels = [(title, load_picture(image, turn=False)) for title, image in panels]
    columns = min(len(panels), COLUMNS)
    width, height = (max(getattr(image, side) for _, image in panels) for side in ("width", "height"))
    width = max(width, NARROWEST)
    sheet_width = columns * (width + MARGIN) + MARGIN
    top = _lines(heading, FONT_SIZE + 4, sheet_width - 2 * MARGIN)
    titles = [_lines(title, FONT_SIZE, width) for title, _ in panels]
    line = FONT_SIZE * 4 // 3
    title_height = max(map(len, titles)) * line + GAP
    step = height + title_height + MARGIN
    head = MARGIN + (len(top) * (line + 6) + MARGIN // 3 if top else 0)
    sheet = Image.new("RGB", (sheet_width, head + -(-len(panels) // columns) * step), PAPER)
    pen = ImageDraw.Draw(sheet)
    _write(pen, top, (MARGIN, MARGIN), FONT_SIZE + 4, line + 6)
    for index, ((_, image), title) in enumerate(zip(panels, titles, strict=True)):
        x = MARGIN + index % columns * (width + MARGIN)
        y = head + index // columns * step
        _write(pen, title, (x, y), FONT_SIZE, line)
        sheet.paste(image, (x, y + title_height))
    return sheet


def _grown(mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], by: int) -> Any:
    """The mask, and all within ``by`` pixels of it (diagonals too)."""
    padded = np.pad(mask, by)
    rows, columns = mask.shape
    shifts = range(2 * by + 1)
    return np.any([padded[i : i + rows, j : j + columns] for i in shifts for j in shifts], axis=0)


def _lines(text: str, size: int, width: int) -> list[str]:
    """``text`` in at most two lines that fit ``width`` pixels; what is cut leaves an ellipsis."""
    font = ImageFont.load_default(size=size)
    lines: list[str] = []
    words = text.split()
    while words:
        word = words.pop(0)
        candidate = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(candidate) <= width:
            lines[-1] = candidate
            continue
        fits = next((n for n in range(1, len(word)) if font.getlength(word[: n + 1]) > width), len(word))
        if len(lines) == TITLE_LINES:
            short = (
                n for n in range(len(lines[-1]) + fits + 1, 0, -1) if font.getlength(candidate[:n] + "…") <= width
            )
            cut = next(short, 0)
            lines[-1] = f"{candidate[:cut].rstrip()}…"
            break
        lines.append(word[:fits])
        words[:0] = [word[fits:]] if word[fits:] else []
    return lines


def _write(pen: ImageDraw.ImageDraw, lines: list[str], at: tuple[int, int], size: int, step: int) -> None:
    font = ImageFont.load_default(size=size)
    for number, text in enumerate(lines):
        pen.text((at[0], at[1] + number * step), text, fill=INK, font=font)
