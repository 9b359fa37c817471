"""Pixels as they are: full range, upright, transparency by rule, and a reason where there are none."""

import io
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from moco.data import decode as module
from moco.data.decode import decode
from moco.data.form import Form, common_form
from moco.data.header import sniff
from moco.data.reading import Reading
from moco.data.unreadable import Unreadable

RGB8, GREY8, GREY16, RGB16 = Form(), Form(1), Form(1, torch.uint16), Form(3, torch.uint16)
FLOAT = Form(1, torch.float32)


def photo(height=75, width=100, channels=3, seed=0):
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (5 + c) + seed) * np.cos(y / (7 - c)) for c in range(channels)]
    return (127 + 120 * np.stack(waves, 2)).astype(np.uint8)


def encoded(array_or_image, kind="PNG", **options) -> bytes:
    image = array_or_image if isinstance(array_or_image, Image.Image) else Image.fromarray(array_or_image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png16(array: np.ndarray) -> bytes:
    """A 16-bit PNG of any colour type, which Pillow cannot write."""
    height, width, channels = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    end = chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + end


def read(content, form=RGB8, reading=None, **options):
    return decode(content, "x", form, reading or Reading(), **options)


GRADIENT = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_every_value(kind):
    image = read(encoded(GRADIENT, kind), GREY16)
    assert image.dtype == torch.uint16
    assert np.array_equal(image[0].numpy(), GRADIENT)
    assert np.array_equal(read(encoded(GRADIENT, kind), RGB16).numpy(), np.stack([GRADIENT] * 3))


def test_sixteen_bit_colour_keeps_every_value_with_and_without_transparency():
    pytest.importorskip("imagecodecs")
    array = np.stack([GRADIENT, GRADIENT.T, 65535 - GRADIENT], 2)
    assert np.array_equal(read(png16(array), RGB16).numpy(), array.transpose(2, 0, 1))
    opaque = np.concatenate([array, np.full((64, 64, 1), 65535, np.uint16)], 2)
    assert np.array_equal(read(png16(opaque), RGB16).numpy(), array.transpose(2, 0, 1))
    clear = np.concatenate([array, np.zeros((64, 64, 1), np.uint16)], 2)
    assert (read(png16(clear), RGB16).float() == 65535).all()


def test_depths_are_scaled_so_that_full_stays_full_and_nothing_is_clipped():
    eight = read(encoded(GRADIENT), GREY8)[0].numpy()
    assert np.array_equal(eight, np.round(GRADIENT / 257))
    assert abs(float(eight.mean()) - 127.5) < 0.1  # a conversion that clips gives 255
    deep = read(encoded(photo()[:, :, 0]), GREY16)[0].numpy()
    assert np.array_equal(deep, photo()[:, :, 0].astype(np.uint16) * 257)
    unit = read(encoded(np.array([[0, 255]], np.uint8)), FLOAT)
    assert unit.tolist() == [[[0, 1]]]


def test_floating_point_is_kept_as_it_is_and_scaled_only_within_zero_and_one():
    values = np.linspace(-3, 900, 24, dtype=np.float32).reshape(4, 6)
    assert np.array_equal(read(encoded(values, "TIFF"), FLOAT)[0].numpy(), values)
    with pytest.raises(Unreadable, match=r"floating-point values from -3 to 900 among 255-level images"):
        read(encoded(values, "TIFF"))
    unit = np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6)
    assert np.array_equal(read(encoded(unit, "TIFF"), GREY8)[0].numpy(), np.floor(unit * 255 + 0.5))
    with pytest.raises(Unreadable, match="values that are not finite"):
        read(encoded(np.full((2, 2), np.nan, np.float32), "TIFF"), FLOAT)


def tiff(array, **options) -> bytes:
    buffer = io.BytesIO()
    pytest.importorskip("tifffile").imwrite(buffer, array, **options)
    return buffer.getvalue()


def packed(array, bits) -> bytes:
    """Values of so many bits, each row in whole bytes; imagecodecs before 2026 can only read them."""
    places = np.arange(bits)[::-1]
    return np.packbits((array[..., None] >> places & 1).reshape(len(array), -1), axis=1).tobytes()


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_signed_values_of_a_tiff_are_kept(dtype, channels):
    low, high = np.iinfo(np.int16 if dtype == np.int32 else dtype).min, 100
    array = np.linspace(low, high, 20 * 30 * channels).astype(dtype).reshape(20, 30, channels)
    kind = "rgb" if channels == 3 else "minisblack"
    content = tiff(array.squeeze(), photometric=kind, planarconfig="contig" if channels > 1 else None)
    header = sniff(content)
    form = common_form({(header.channels, header.depth, header.alpha): 1}, Reading())
    assert form == Form(channels, torch.float32)
    assert np.array_equal(read(content, form).permute(1, 2, 0).numpy(), array.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_compressed_numbers_of_a_tiff_are_kept_in_either_order_of_bytes(dtype, byteorder):
    """Java programs of microscopists write the largest byte first."""
    array = np.linspace(0, 30_000, 600).astype(dtype).reshape(20, 30)
    content = tiff(array, photometric="minisblack", byteorder=byteorder, compression="deflate")
    form = GREY16 if dtype == np.uint16 else Form(1, torch.float32)
    assert np.array_equal(read(content, form)[0].numpy(), array)


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("orientation", [1, 6])
def test_grey_whose_zero_is_white_is_no_negative(bits, orientation):
    array = np.linspace(0, 2**bits - 1, 600).astype(np.uint8 if bits == 8 else np.uint16).reshape(20, 30)
    options = {"extratags": [(274, 3, 1, orientation, True)], "bitspersample": bits}
    if bits == 12:
        pytest.importorskip("imagecodecs")
        options |= {"shape": array.shape, "dtype": array.dtype}
    black, white = (
        tiff(iter([packed(values, bits)]) if bits == 12 else values, photometric=kind, **options)
        for values, kind in ((array, "minisblack"), (2**bits - 1 - array, "miniswhite"))
    )
    form = GREY8 if bits == 8 else GREY16
    assert torch.equal(read(white, form), read(black, form))
    assert read(black, form).int().max() == 2**bits - 1


def test_grey_beside_transparency_whose_zero_is_white_is_no_negative():
    array = np.linspace(0, 65535, 1200).astype(np.uint16).reshape(20, 30, 2)
    inverted = np.stack([65535 - array[..., 0], array[..., 1]], 2)
    form, reading = Form(2, torch.uint16, alpha=True), Reading(alpha="keep")
    content = tiff(inverted, photometric="miniswhite", planarconfig="contig", extrasamples=["unassalpha"])
    assert np.array_equal(read(content, form, reading).permute(1, 2, 0).numpy(), array)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [2, 3, 4, 7])
@pytest.mark.parametrize("planar", [False, True])
def test_tiff_of_any_number_of_channels(dtype, channels, planar):
    tifffile = pytest.importorskip("tifffile")
    array = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (20, 30, channels)).astype(dtype)
    buffer = io.BytesIO()
    stored = np.moveaxis(array, 2, 0) if planar else array
    kind = "separate" if planar else "contig"
    extra = [0] * (channels - 1)
    tifffile.imwrite(buffer, stored, photometric="minisblack", planarconfig=kind, extrasamples=extra)
    header = sniff(buffer.getvalue())
    assert (header.width, header.height, header.channels) == (30, 20, channels)
    form = common_form({(header.channels, header.depth, header.alpha): 1}, Reading())
    image = read(buffer.getvalue(), form)
    assert np.array_equal(image.permute(1, 2, 0).numpy(), array)
    with pytest.raises(Unreadable, match=f"it has {channels} channels where the set has 5"):
        read(buffer.getvalue(), Form(5, form.dtype))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_composited_dropped_or_kept(mode):
    array = photo(8, 8, 4)
    image = Image.fromarray(array).convert("RGBA")
    if mode == "LA":
        image = image.convert("LA")
    elif mode == "P":
        image = Image.new("P", (8, 8), 1)
        image.putpalette([0, 0, 0, 200, 100, 50])
    content = encoded(image, transparency=bytes([0, 128])) if mode == "P" else encoded(image)
    rgba = np.asarray(Image.open(io.BytesIO(content)).convert("RGBA")).astype(float)
    share = rgba[..., 3:] / 255
    for background in 1.0, 0.0, 0.25:
        mixed = rgba[..., :3] * share + 255 * background * (1 - share)
        ours = read(content, reading=Reading(background=background)).permute(1, 2, 0).numpy()
        assert np.abs(ours - mixed).max() <= 1
    dropped = read(content, reading=Reading(alpha="drop")).permute(1, 2, 0).numpy()
    assert np.array_equal(dropped, rgba[..., :3])
    if mode == "RGBA":
        kept = read(content, Form(4, alpha=True), Reading(alpha="keep")).permute(1, 2, 0).numpy()
        assert np.array_equal(kept, array)
        opaque = read(encoded(array[..., :3]), Form(4, alpha=True), Reading(alpha="keep"))
        assert (opaque[3] == 255).all()


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_that_of_pillow(orientation, kind, fast, monkeypatch):
    monkeypatch.setattr(module, "FAST_JPEG", fast and module.FAST_JPEG)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(photo(24, 40), kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    image = read(content)
    assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)
    if kind != "PNG":
        header = sniff(content)
        assert (header.height, header.width) == expected.shape[:2]


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_fast_decoder_gives_pillows_pixels_at_every_size(factor, channels, monkeypatch):
    if not module.FAST_JPEG:
        pytest.skip("simplejpeg is not installed")
    array = photo(203, 331, channels)
    content = encoded(array[..., 0] if channels == 1 else array, "JPEG", quality=85)
    form = Form(channels)
    fast = read(content, form, factor=factor)
    monkeypatch.setattr(module, "FAST_JPEG", False)
    assert torch.equal(fast, read(content, form, factor=factor))
    assert fast.shape == (channels, -(-203 // factor), -(-331 // factor))


@pytest.mark.parametrize(("name", "content"), [("imagecodecs", png16(np.zeros((4, 4, 3), np.uint16)))])
def test_what_needs_another_library_says_so(name, content, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Unreadable, match=r"PNG with 3 channels of 16 bits needs imagecodecs: pip install"):
        read(content, RGB16)


def test_limits_are_checked_on_the_header():
    with pytest.raises(
        Unreadable, match=r"100 x 75 pixels of 3 channels, more than reading.max_pixels = 7,499"
    ):
        read(encoded(photo()), reading=Reading(max_pixels=7499))
    read(encoded(photo()), reading=Reading(max_pixels=7500))
    with pytest.raises(Unreadable, match="the file is empty"):
        read(b"")
    with pytest.raises(Unreadable, match=r"no image of a known format, or cut off in its header: b'hello'"):
        read(b"hello")
    for cut in 0.3, 0.6, 0.9:
        for kind in "JPEG", "PNG":
            content = encoded(photo(), kind)
            with pytest.raises(Unreadable, match=r"^cannot decode x: "):
                read(content[: int(len(content) * cut)])


@pytest.mark.parametrize(
    ("counts", "reading", "form"),
    [
        ({}, Reading(), RGB8),
        ({(1, 8, False): 9}, Reading(), GREY8),
        ({(1, 8, False): 9, (3, 8, False): 1}, Reading(), RGB8),
        ({(1, 16, False): 1, (1, 8, False): 9}, Reading(), GREY16),
        ({(1, 16, False): 1, (1, 8, False): 9}, Reading(bits=8), GREY8),
        ({(1, 32, False): 9}, Reading(), FLOAT),
        ({(1, 32, False): 9, (3, 16, False): 9}, Reading(), RGB16),
        ({(5, 16, False): 9, (3, 8, False): 2}, Reading(), Form(5, torch.uint16)),
        ({(3, 8, True): 2, (3, 8, False): 2}, Reading(), RGB8),
        ({(3, 8, True): 2, (3, 8, False): 2}, Reading(alpha="keep"), Form(4, alpha=True)),
        ({(1, 8, False): 9}, Reading(channels=3), RGB8),
        ({(3, 8, False): 9}, Reading(channels=1), GREY8),
    ],
)
def test_the_form_of_a_set_keeps_what_its_files_have(counts, reading, form):
    assert common_form(counts, reading) == form


def test_colour_becomes_grey_where_one_channel_is_asked_for():
    grey = read(encoded(photo()), GREY8)
    expected = photo().astype(float) @ [0.2989, 0.587, 0.114]
    assert np.abs(grey[0].numpy() - expected).max() <= 0.51


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 0}, "reading.channels must be at least 1, got 0"),
        ({"bits": 16}, "reading.bits must be 8, or None for the depth of the files, got 16"),
        ({"alpha": "mix"}, "reading.alpha must be one of composite, drop, keep, got 'mix'"),
        ({"background": 2.0}, r"reading.background must be in \[0, 1\], got 2.0"),
        ({"max_pixels": 0}, "reading.max_pixels must be at least 1 pixel, got 0"),
        ({"max_memory": 0}, "reading.max_memory must be at least 1 byte, got 0"),
        ({"budget": 1.5}, r"reading.budget must be a share of the images in \[0, 1\], got 1.5"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Reading(**change)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_headers_say_what_pillow_says(kind, mode):
    image = Image.fromarray(photo(33, 47)).convert(mode)
    content = encoded(image, kind)
    header = sniff(content[:512], lambda at, n: content[at : at + n])
    assert (header.width, header.height) == (47, 33)
    if kind not in ("GIF", "BMP", "WEBP"):
        assert header.channels == (1 if mode == "L" else 3)
    assert sniff(content[:5]) is None
