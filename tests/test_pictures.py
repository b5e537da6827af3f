"""Pictures as viewers show them, against values worked out from what the test itself wrote into the file."""

import contextlib
import io
import os
import struct
import warnings
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile

from conftest import noise
from foveate import draw
from foveate.errors import InvalidInputs
from foveate.pictures import load_picture

EXAMPLES = Path(__file__).parent.parent / "examples"
TURNED = {  # what stands in the file, by orientation, if this is shown
    1: lambda shown: shown,
    2: lambda shown: shown[:, ::-1],
    3: lambda shown: shown[::-1, ::-1],
    4: lambda shown: shown[::-1],
    5: lambda shown: shown.swapaxes(0, 1),
    6: lambda shown: shown.swapaxes(0, 1)[::-1],
    7: lambda shown: shown[::-1, ::-1].swapaxes(0, 1),
    8: lambda shown: shown.swapaxes(0, 1)[:, ::-1],
}
D50 = (63190, 65536, 54061)  # XYZ in 16.16
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def png(values, bits, kind, chunks=()):
    """A PNG file. ``values [H, W]`` or ``[H, W, C]``, ``kind`` its colour type, ``chunks`` after the header."""
    values = np.asarray(values)
    height, width = values.shape[:2]
    rows = values.reshape(height, -1)
    if bits == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    else:
        planes = (rows[..., None] >> np.arange(bits)[::-1]) & 1
        lines = [np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in planes]
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + line for line in lines))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", body), (b"IEND", b"")]
    packed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def tiff(values, bits, samples=1, interpretation=1, order="<", orientation=1):
    """A TIFF file of one plane of grey; of 12 bits the width is even."""
    values = np.asarray(values)
    height, width = values.shape
    if bits == 12:
        pairs = values.reshape(-1, 2).astype(np.uint32)
        joined = pairs[:, 0] << 12 | pairs[:, 1]
        data = np.stack([joined >> 16, joined >> 8, joined], axis=1).astype(np.uint8).tobytes()
    else:
        data = values.astype(f"{order}{'uif'[samples - 1]}{bits // 8}").tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: interpretation, 273: 8, 274: orientation, 277: 1}
    tags |= {278: height, 279: len(data), 339: samples}
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, 4, 1) + struct.pack(f"{order}I", value) for tag, value in tags.items()
    )
    start = 8 + len(data) + len(data) % 2
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, start)
    return head + data + b"\0" * (len(data) % 2) + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes()


def shown(source):
    picture = load_picture(source)
    assert picture.mode == "RGB"
    assert not picture.info
    return np.asarray(picture).astype(int)


def grey(values):
    return np.repeat(np.asarray(values)[..., None], 3, axis=2)


def scaled(values, low, high):
    return np.array([[round(Fraction(255 * (int(v) - low), high - low)) for v in row] for row in values])


def over_white(colours, alpha):
    alpha = np.asarray(alpha, float)[..., None] / 255
    return np.asarray(colours) * alpha + 255 * (1 - alpha)


few = settings(max_examples=30, deadline=None)
SIDES = st.integers(1, 5)


def arrays(bits, channels=None, sides=SIDES):
    def of(shape):
        many = int(np.prod(shape))
        values = st.lists(st.integers(0, 2**bits - 1), min_size=many, max_size=many)
        return values.map(lambda numbers: np.array(numbers).reshape(shape))

    return st.tuples(sides, sides).flatmap(lambda size: of(size if channels is None else (*size, channels)))


# Grey: kind of file x bits x byte order x orientation.


@few
@given(
    values=arrays(16), order=st.sampled_from("<>"), orientation=st.sampled_from(list(TURNED)), white=st.booleans()
)
def test_sixteen_bits_of_a_tiff_are_scaled_and_turned(values, order, orientation, white):
    assume(order == "<" or not white)  # Pillow refuses that one
    file = tiff(TURNED[orientation](values), 16, 1, 0 if white else 1, order, orientation)
    expected = grey(scaled(values, 0, 65535))
    assert (shown(file) == (255 - expected if white else expected)).all()


@few
@given(values=arrays(16))
def test_sixteen_bits_are_scaled_whatever_the_file(values):
    expected = grey(scaled(values, 0, 65535))
    levels = values.astype(np.uint16)
    portable = b"P5 %d %d 65535\n" % values.shape[::-1] + levels.astype(">u2").tobytes()
    assert (shown(png(values, 16, 0)) == expected).all()
    assert (shown(portable) == expected).all()
    assert (shown(Image.fromarray(levels)) == expected).all()
    big = Image.frombytes("I;16B", values.shape[::-1], levels.astype(">u2").tobytes())
    assert (shown(big) == expected).all()
    assert (shown(saved(Image.fromarray(levels), "TIFF", compression="tiff_lzw")) == expected).all()


@few
@given(values=arrays(12, sides=st.sampled_from([2, 4])))
def test_twelve_bits_are_scaled_by_twelve(values):
    assert (shown(tiff(values, 12)) == grey(scaled(values, 0, 4095))).all()


@few
@given(values=arrays(32), samples=st.sampled_from([1, 2]))
def test_integers_of_32_bits_are_scaled_by_the_smallest_range_that_holds_them(values, samples):
    values = values >> 1 if samples == 2 else values
    high = next(white for white in (255, 65535, 2**31 - 1, 2**32 - 1) if values.max() <= white)
    assert abs(shown(tiff(values, 32, samples)) - grey(scaled(values, 0, high))).max() == 0


@few
@given(values=arrays(16, sides=st.integers(2, 4)))
def test_numbers_below_zero_are_scaled_from_the_smallest_to_the_largest(values):
    values = values - 2**15
    assume(values.min() < 0 and values.min() != values.max())
    expected = grey(scaled(values, int(values.min()), int(values.max())))
    for file in (tiff(values, 16, 2), tiff(values, 32, 2), tiff(values, 32, 3), tiff(values, 16, 2, order=">")):
        assert abs(shown(file) - expected).max() <= 1  # a half is rounded either way
    assert (shown(tiff(values.clip(0), 16, 2)) == grey(scaled(values.clip(0), 0, 32767))).all()


@few
@given(values=arrays(8), order=st.sampled_from("<>"))
def test_floats_in_0_to_1_are_scaled_by_that(values, order):
    assert (shown(tiff(values / 255, 32, 3, order=order)) == grey(values)).all()
    assert (shown(tiff(values / 255, 32, 3, 0, order)) == grey(255 - values)).all()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_images_in_memory_of_wide_pixels(mode):
    ramp = Image.linear_gradient("L")
    scale = 1 if mode == "I" else 1 / 255
    wide = Image.fromarray((np.asarray(ramp) * scale).astype("int32" if mode == "I" else "float32"))
    assert (shown(wide) == grey(np.asarray(ramp))).all()


# Transparency: over white.


@few
@given(
    values=arrays(8, 4),
    orientation=st.sampled_from(list(TURNED)),
    kind=st.sampled_from(["PNG", "TIFF", "LZW", "WEBP"]),
)
def test_alpha_is_over_white_and_exif_turns(values, orientation, kind):
    image = Image.fromarray(TURNED[orientation](values).astype(np.uint8).copy())
    options = {"WEBP": {"lossless": True, "exact": True}, "LZW": {"compression": "tiff_lzw"}}.get(kind, {})
    file = saved(image, "TIFF" if kind == "LZW" else kind, exif=exif(orientation), **options)
    assert abs(shown(file) - over_white(values[..., :3], values[..., 3])).max() <= 1


@few
@given(values=arrays(16, 4), colours=st.booleans())
def test_alpha_of_sixteen_bits(values, colours):
    values = values if colours else values[..., [0, 3]]
    expected = over_white(values[..., :-1] / 257, values[..., -1] / 257)
    assert abs(shown(png(values, 16, 6 if colours else 4)) - expected).max() <= 2.5


@few
@given(data=st.data(), bits=st.sampled_from([1, 2, 4, 8, 16]), orientation=st.sampled_from(list(TURNED)))
def test_a_transparent_level_of_grey_is_white(data, bits, orientation):
    values = data.draw(arrays(bits))
    level = int(data.draw(st.sampled_from(sorted(set(values.flat)))))
    expected = np.where(values == level, 255, scaled(values, 0, 2**bits - 1))
    chunks = [(b"tRNS", struct.pack(">H", level)), (b"eXIf", exif(orientation)[6:])]
    assert (shown(png(TURNED[orientation](values), bits, 0, chunks)) == grey(expected)).all()


@few
@given(data=st.data())
def test_a_transparent_colour_is_white(data):
    values = data.draw(arrays(8, 3))
    colour = values[0, 0]
    expected = np.where((values == colour).all(axis=2, keepdims=True), 255, values)
    assert (shown(png(values, 8, 2, [(b"tRNS", struct.pack(">3H", *colour.tolist()))])) == expected).all()
    with pytest.raises(InvalidInputs, match="transparent colour of 16 bits"):  # Pillow compares the wrong bytes
        load_picture(png(values * 257, 16, 2, [(b"tRNS", struct.pack(">3H", 1, 2, 3))]))


@few
@given(data=st.data(), bits=st.sampled_from([1, 2, 4, 8]))
def test_palettes_with_and_without_transparency(data, bits):
    values = data.draw(arrays(bits))
    palette = np.random.default_rng(bits).integers(0, 256, (2**bits, 4))
    alpha = data.draw(st.sampled_from([palette[:, 3], np.where(np.arange(2**bits) == 1, 0, 255)]))
    chunk = (b"PLTE", palette[:, :3].astype(np.uint8).tobytes())
    clear = (b"tRNS", alpha.astype(np.uint8).tobytes())
    assert (shown(png(values, bits, 3, [chunk])) == palette[values, :3]).all()
    expected = over_white(palette[values, :3], alpha[values])
    assert abs(shown(png(values, bits, 3, [chunk, clear])) - expected).max() <= 1


@pytest.mark.parametrize(
    ("mode", "pixel", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 7, (7, 7, 7)),
        ("LA", (100, 0), (255, 255, 255)),
        ("LA", (100, 255), (100, 100, 100)),
        ("La", (0, 0), (255, 255, 255)),
        ("RGBa", (0, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBX", (1, 2, 3, 0), (1, 2, 3)),
        ("PA", (9, 0), (255, 255, 255)),
        ("PA", (9, 255), (9, 9, 9)),
        ("CMYK", (255, 0, 0, 0), (0, 255, 255)),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
        ("YCbCr", (255, 128, 128), (255, 255, 255)),
        ("HSV", (0, 255, 255), (255, 0, 0)),
        ("LAB", (255, 128, 128), (255, 255, 255)),
        ("LAB", (0, 128, 128), (0, 0, 0)),
    ],
)
def test_modes(mode, pixel, expected):
    image = Image.new(mode, (3, 2), pixel)
    if mode == "PA":
        image.putpalette(bytes(level for grey in range(256) for level in (grey, grey, grey)))
        image.putdata([pixel] * 6)
    assert abs(shown(image) - expected).max() <= 1
    assert image.size == (3, 2)


def test_cmyk_of_a_jpeg_is_inverted_by_adobe_and_shown_right():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert abs(shown(saved(image, "JPEG", quality=95)) - (255, 0, 0)).max() <= 3


# Profiles, animations, pages.


def swapped():
    """An sRGB profile in which red and green change places."""
    count = struct.unpack(">I", SRGB[128:132])[0]
    table = SRGB[132 : 132 + 12 * count]
    table = table.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    return SRGB[:132] + table + SRGB[132 + 12 * count :]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_a_profile_is_applied_and_a_broken_or_foreign_one_is_not(kind):
    red, options = Image.new("RGB", (16, 16), (255, 0, 0)), {"lossless": True} if kind == "WEBP" else {}
    near = 3 if kind == "JPEG" else 1
    assert abs(shown(saved(red, kind, icc_profile=swapped(), **options)) - (0, 255, 0)).max() <= near
    for profile in (
        SRGB,
        b"nonsense",
        SRGB[:200],
        ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
    ):
        assert abs(shown(saved(red, kind, icc_profile=profile, **options)) - (255, 0, 0)).max() <= near
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    if kind == "PNG":  # a colour's alpha is no colour
        assert abs(shown(saved(half, kind, icc_profile=swapped())) - (127, 255, 127)).max() <= 1


def test_a_profile_of_grey():
    """Of linear light: sRGB shows level v as 1.055 (v / 255)^(1 / 2.4) - 0.055."""
    head = struct.pack(">4x4sI4s4s4s12x4s28x3i48x", b"lcms", 0x02100000, b"mntr", b"GRAY", b"XYZ ", b"acsp", *D50)
    parts = {b"wtpt": b"XYZ \0\0\0\0" + struct.pack(">3i", *D50), b"kTRC": b"curv" + bytes(8)}
    at, table = 128 + 4 + 12 * len(parts), struct.pack(">I", len(parts))
    for name, data in parts.items():
        table += name + struct.pack(">II", at, len(data))
        at += len(data)
    profile = struct.pack(">I", at) + head[4:] + table + b"".join(parts.values())
    levels = np.arange(1, 256)
    expected = 255 * (1.055 * (levels / 255) ** (1 / 2.4) - 0.055)
    expected = np.where(levels / 255 <= 0.0031308, 12.92 * levels, expected)
    for image in (
        Image.fromarray(levels.astype(np.uint8)[None]),
        Image.fromarray((levels * 257).astype(np.uint16)[None]),
    ):
        image.info["icc_profile"] = profile
        assert abs(shown(image)[0].T - expected).max() <= 1.5
        assert abs(shown(image.convert("RGB"))[0].T - levels).max() <= 0 or image.mode != "L"


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_several_pictures_give_the_first(kind, tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    path = tmp_path / "several"
    path.write_bytes(saved(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert abs(shown(path) - (255, 0, 0)).max() <= 3
    with Image.open(path) as image:
        image.seek(1)
        assert abs(shown(image) - (0, 0, 255)).max() <= 3
        assert image.tell() == 1


# What is refused, in one line that names it.

REFUSED = {
    "cut short": (saved(noise(0), "PNG")[:900], "truncated"),
    "text": (b"no picture", "not an image that can be read"),
    "nothing": (b"", "not an image"),
    "not finite": (tiff([[0.5, np.nan]], 32, 3), "not finite"),
    "infinite": (tiff([[0.5, np.inf]], 32, 3), "not finite"),
    "one level above 1": (tiff([[7.5, 7.5]], 32, 3), "all its pixels are 7.5"),
    "signed bytes": (tiff([[-1, 1]], 8, 2), "signed pixels of 8 bits"),
    "an unknown range": (
        b"SIMPLE  =                    T".ljust(80)
        + b"".join(
            f"{name:8}= {value:>20}".encode().ljust(80)
            for name, value in {"BITPIX": 16, "NAXIS": 2, "NAXIS1": 2, "NAXIS2": 1}.items()
        )
        + b"END".ljust(2480)
        + bytes(2880),
        "FITS",
    ),
    "no pixels": (Image.new("RGB", (0, 5)), r"in memory \(RGB, 0 x 5\): it has no pixels"),
    "an array": (np.zeros((2, 2)), "allowed are a path"),
    "None": (None, "allowed are a path"),
}


@pytest.mark.parametrize("source", REFUSED.values(), ids=REFUSED)
def test_what_is_refused(source):
    with pytest.raises(InvalidInputs, match=source[1]) as caught:
        load_picture(source[0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["http://a.org/b.png", "https:/a.org/b.png", "file:///b.png", "data:image/png;base64,AA"]
)
def test_addresses_are_refused(address):
    for source in (address, Path(address)):
        with pytest.raises(InvalidInputs, match="an address; allowed are files"):
            load_picture(source)


def test_files_that_are_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe")
    told = {
        "missing.png": "no such file",
        ".": "a folder",
        "empty.png": "an empty file",
        "pipe": "not a regular file",
    }
    for name, reason in told.items():
        with pytest.raises(InvalidInputs, match=f"{name!r}: {reason}"):
            load_picture(name)
    for name, reason in (("x" * 5000, "name too long"), ("a\0b", "null"), ("empty.png/x", "directory")):
        with pytest.raises(InvalidInputs, match=reason) as caught:
            load_picture(name)
        assert len(str(caught.value)) < 300

    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", forbidden)
    with pytest.raises(InvalidInputs, match=r"photo.jpg'.*Permission denied"):
        load_picture(EXAMPLES / "photo.jpg")


def test_a_picture_above_the_limit_is_refused_with_its_size_and_one_below_is_silent(monkeypatch):
    file = png(np.zeros((20, 20), int), 1, 0)
    huge = file.replace(struct.pack(">II", 20, 20), struct.pack(">II", 20_000, 20_000))
    header = huge[12:29]
    huge = huge[:29] + struct.pack(">I", zlib.crc32(header)) + huge[33:]
    with pytest.raises(InvalidInputs, match=r"400,000,000 pixels.* 178,956,970 pixels"):
        load_picture(huge)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # Pillow warns above it and refuses above twice as many
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shown(file).shape == (20, 20, 3)


@few
@given(data=st.data(), kind=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM", "TGA"]))
def test_files_cut_short_are_refused_or_whole(data, kind):
    whole = saved(noise(0).resize((24, 20)), kind)
    part = whole[: data.draw(st.integers(0, len(whole) - 1))]
    try:
        picture = load_picture(part)
    except InvalidInputs:
        return
    assert picture.tobytes() == load_picture(whole).tobytes()


@few
@given(data=st.data(), kind=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "PPM"]))
def test_damaged_files_are_refused_or_shown_never_another_error(data, kind):
    file = bytearray(saved(noise(0).resize((12, 10)), kind, **{"exif": exif(6)} if kind == "JPEG" else {}))
    for _ in range(3):
        file[data.draw(st.integers(0, min(len(file), 300) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InvalidInputs):
        assert load_picture(file).mode == "RGB"


# Nothing else changes.


def test_nothing_global_changes_and_nothing_stays_open(tmp_path):
    before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, list(warnings.filters))
    palette = Image.new("P", (2, 2)).convert("P", palette=Image.Palette.ADAPTIVE)
    file = saved(palette, "PNG", transparency=bytes([0, 9]))  # Pillow warns of such where it makes RGB of it
    path = tmp_path / "a.png"
    path.write_bytes(file)
    descriptors = len(os.listdir("/dev/fd"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        shown(path)
        with pytest.raises(InvalidInputs):
            load_picture(file[:-30])
    assert not told
    assert len(os.listdir("/dev/fd")) == descriptors
    assert (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


def test_an_open_image_is_not_changed_nor_shared():
    image = Image.new("RGB", (2, 1), "red")
    image.info["icc_profile"] = swapped()
    picture = load_picture(image)
    picture.putpixel((0, 0), (1, 2, 3))
    assert image.getpixel((0, 0)) == (255, 0, 0)
    assert image.info["icc_profile"] == swapped()
    lazy = Image.open(io.BytesIO(png([[1, 2]], 4, 0, [(b"tRNS", b"\0\1")])))
    assert (shown(lazy)[0, :, 0] == (255, 34)).all()
    assert lazy.info["transparency"] == 1


def test_a_path_bytes_and_an_image_are_the_same():
    path = EXAMPLES / "photo.jpg"
    expected = np.asarray(Image.open(path).convert("RGB"))
    data = path.read_bytes()
    for source in (path, str(path), data, bytearray(data), memoryview(data), Image.open(path)):
        assert (shown(source) == expected).all()


def test_a_drawing_shows_what_the_processor_saw():
    image = Image.open(io.BytesIO(saved(Image.new("RGB", (16, 8), "red"), "PNG", exif=exif(6))))
    assert load_picture(image).size == (8, 16)
    assert load_picture(image, turn=False).size == (16, 8)
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert np.asarray(draw.enlarged(clear, (2, 2))).min() == 255


def test_control_stock_conversion_is_wrong():
    """What these tests hold is what `convert("RGB")` does not do."""
    ramp = Image.fromarray(np.linspace(0, 65535, 64).astype(np.uint16)[None])
    clear = Image.new("RGBA", (1, 1), (255, 0, 0, 0))
    half = Image.fromarray(np.full((1, 1), 0.5, np.float32))
    for image in (ramp, clear, half):
        assert (np.asarray(image.convert("RGB")) != shown(image)).any()
    assert (np.asarray(ramp.convert("RGB")) == 255).mean() > 0.9
    assert (shown(ramp)[0, :, 0] == np.rint(np.linspace(0, 65535, 64).astype(int) / 257)).all()
