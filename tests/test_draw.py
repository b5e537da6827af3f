"""Pictures: kept patches untouched, dropped ones changed, nothing clipped."""

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import noise
from foveate import draw
from foveate.errors import FoveateError, InvalidInputs
from foveate.families import View


def patches(image, grid):
    """[height * width, cell, cell, 3] pixels of each patch."""
    height, width = grid
    pixels = np.asarray(image)
    cell = pixels.shape[0] // height
    return pixels.reshape(height, cell, width, cell, 3).swapaxes(1, 2).reshape(-1, cell, cell, 3)


@pytest.mark.parametrize("grid", [(24, 24), (6, 10), (1, 7)])
def test_kept_patches_are_untouched_and_dropped_ones_are_not(grid):
    image = noise(0)
    kept = torch.tensor([0, 3, grid[0] * grid[1] - 1])
    before = patches(draw.enlarged(image, grid), grid)
    after = patches(draw.kept_tokens(image, grid, kept), grid)
    same = (before == after).all(axis=(1, 2, 3))
    assert set(np.flatnonzero(same)) == set(kept.tolist())


def test_dropped_patches_are_grey_and_darker():
    white = Image.new("RGB", (48, 48), (250, 200, 250))
    picture = patches(draw.kept_tokens(white, (6, 6), [0]), (6, 6))
    dropped = picture[-1]
    assert (dropped[..., 0] == dropped[..., 1]).all()
    assert (dropped[..., 1] == dropped[..., 2]).all()
    assert dropped.max() < 150


def test_an_outline_runs_around_a_kept_patch_on_the_dropped_side():
    grey = Image.new("RGB", (48, 48), (128, 128, 128))
    picture = np.asarray(draw.kept_tokens(grey, (6, 6), [7]))
    cell = picture.shape[0] // 6
    outlined = (picture == draw.OUTLINE).all(axis=2)
    assert outlined[cell - draw.LINE : cell, cell : 2 * cell].all()
    assert outlined[cell : 2 * cell, 2 * cell : 2 * cell + draw.LINE].all()
    assert outlined.sum() == (cell + 2 * draw.LINE) ** 2 - cell**2


def test_all_kept_is_the_image_itself():
    image = noise(1)
    assert draw.kept_tokens(image, (4, 4), range(16)).tobytes() == draw.enlarged(image, (4, 4)).tobytes()


@pytest.mark.parametrize("kept", [[-1], [16], [0, 99]])
def test_an_index_outside_the_grid_is_refused(kept):
    with pytest.raises(InvalidInputs, match=r"allowed are 0\.\.15"):
        draw.kept_tokens(noise(2), (4, 4), kept)


def test_each_frame_has_its_own_picture_and_tiles_share_the_image():
    frames = [noise(number) for number in range(4)]
    views = [View(f"frame {number}", (4, 4), torch.arange(16)) for number in (1, 2)]
    panels = draw.kept_views(views, frames)
    assert [name for name, _ in panels] == ["frame 1", "frame 2"]
    for (_, picture), frame in zip(panels, frames[::2], strict=True):
        assert picture.tobytes() == draw.enlarged(frame, (4, 4)).tobytes()
    views = [View("image", (2, 2), torch.tensor([1])), View("tiles", (4, 6), torch.tensor([5, 7]))]
    for (_, picture), view in zip(draw.kept_views(views, frames[0]), views, strict=True):
        assert picture.tobytes() == draw.kept_tokens(frames[0], view.grid, view.kept).tobytes()
    with pytest.raises(InvalidInputs, match="no pictures"):
        draw.kept_views(views, [])


def test_patches_are_square_whatever_the_grid():
    assert draw.enlarged(noise(3), (6, 10)).size == (580, 348)


def test_the_seen_image_is_what_went_into_the_processor(bundled):
    _, processor = bundled
    image = noise(4)  # of the model's own size: neither resized nor cropped
    pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    assert (
        np.abs(np.asarray(draw.seen_image(noise(5), pixels, processor), int) - np.asarray(image, int)).max() <= 1
    )


def test_the_seen_image_of_a_wide_photo_is_its_middle(bundled):
    _, processor = bundled
    wide = Image.new("RGB", (600, 200), (255, 0, 0))
    wide.paste((0, 0, 255), (200, 0, 400, 200))
    pixels = processor.image_processor(wide, return_tensors="pt")["pixel_values"]
    seen = np.asarray(draw.seen_image(wide, pixels, processor))
    assert seen.shape == (192, 192, 3)
    assert (np.abs(seen[:, 8:-8].astype(int) - (0, 0, 255)) <= 2).all()


def test_of_tiles_and_patches_the_whole_image_is_seen(bundled):
    image = noise(6)
    for pixels in (torch.zeros(4, 3, 8, 8), torch.zeros(16, 12)):
        assert draw.seen_image(image, pixels, bundled[1]) is image


def test_a_contact_sheet_holds_every_panel_unscaled():
    panels = [(f"panel {i}", Image.new("RGB", (100, 80), (i, 200, 0))) for i in range(5)]
    sheet = np.asarray(draw.contact_sheet(panels, heading="five"))
    for i in range(5):
        assert (sheet == (i, 200, 0)).all(axis=2).sum() == 100 * 80
    border = np.concatenate([sheet[:8].ravel(), sheet[-8:].ravel(), sheet[:, :8].ravel(), sheet[:, -8:].ravel()])
    assert (border == 255).all()


@pytest.mark.parametrize("text", ["", "short", "a " * 400, "x" * 900, "[not markup] <image> é"])
def test_titles_never_run_out_of_their_panel(text):
    panel = Image.new("RGB", (120, 40), (0, 0, 255))
    sheet = np.asarray(draw.contact_sheet([(text, panel), ("b", panel)], heading=text))
    assert (sheet == (0, 0, 255)).all(axis=2).sum() == 2 * 120 * 40
    assert (sheet[:, -draw.MARGIN + 2 :] == 255).all()
    gutter = slice(draw.MARGIN + 120 + 2, 2 * draw.MARGIN + 120 - 2)
    below_heading = sheet[-(40 + draw.GAP + 2 * draw.MARGIN) :]
    assert (below_heading[:, gutter] == 255).all()


def test_no_panels_is_refused():
    with pytest.raises(FoveateError):
        draw.contact_sheet([])


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
@pytest.mark.parametrize("grid", [(1, 1), (1, 576), (576, 1), (1, 1000), (24, 24)])
def test_pictures_and_grids_of_odd_sizes(size, grid):
    picture = draw.kept_tokens(Image.new("RGB", size, (0, 0, 255)), grid, [0])
    assert picture.width * grid[0] == picture.height * grid[1]
    sheet = np.asarray(draw.contact_sheet([("title", picture)]))
    title = sheet[draw.MARGIN : draw.MARGIN + draw.FONT_SIZE]
    assert (title == draw.INK).all(axis=2).any(axis=0).sum() > 20  # wide enough to be read


@pytest.mark.parametrize("grid", [(0, 0), (0, 5), (5, 0)])
def test_a_grid_without_tokens_is_refused(grid):
    with pytest.raises(InvalidInputs, match=f"grid {grid[0]} x {grid[1]}: allowed is 1 x 1 or more"):
        draw.kept_tokens(noise(7), grid, [])


def test_panels_of_any_mode_are_shown_as_a_viewer_shows_them():
    panels = [("grey", Image.new("I;16", (99, 9), 257 * 99)), ("clear", Image.new("RGBA", (99, 9), (1, 2, 3, 0)))]
    sheet = np.asarray(draw.contact_sheet(panels))
    assert (sheet == 99).all(axis=2).sum() == 99 * 9
    assert not (sheet == (1, 2, 3)).all(axis=2).any()
