"""Transparency that is no channel of the file: a colour of a palette, a value of a PNG, a mask of a BMP."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from moco.data.header import sniff
from moco.data.open import open_source
from moco.data.reading import Reading

GREY = np.arange(24, dtype=np.uint8).reshape(4, 6)
CLEAR = 3  # the value that is transparent


def saved(image, kind, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def palette() -> Image.Image:
    image = Image.fromarray(GREY)
    image = image.convert("P")
    image.putpalette([value for i in range(256) for value in (i, 255 - i, 7)])
    return image


def png16(channels: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    array = np.repeat(GREY[..., None], channels, 2).astype(">u2") * 257
    head = struct.pack(">IIBBBBB", 6, 4, 16, {1: 0, 3: 2}[channels], 0, 0, 0)
    clear = struct.pack(">H", 257 * CLEAR) * channels
    rows = b"".join(b"\0" + row.tobytes() for row in array)
    chunks = (
        (b"IHDR", head),
        (b"tEXt", bytes(700)),
        (b"tRNS", clear),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def bmp() -> bytes:
    """32 bits with a mask for transparency, which Pillow does not write."""
    pixels = np.stack([GREY, GREY, GREY, np.where(GREY == CLEAR, 0, 255)], 2).astype(np.uint8)[::-1].tobytes()
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = struct.pack("<IiiHHIIiiII", 56, 6, 4, 1, 32, 3, len(pixels), 0, 0, 0, 0) + masks
    return b"BM" + struct.pack("<IHHI", 70 + len(pixels), 0, 0, 70) + head + pixels


FILES = {
    "palette.gif": lambda: saved(palette(), "GIF", transparency=CLEAR, comment=bytes(9)),
    "palette.png": lambda: saved(palette(), "PNG", transparency=CLEAR),
    "grey.png": lambda: saved(Image.fromarray(GREY), "PNG", transparency=CLEAR),
    "colour.png": lambda: saved(Image.fromarray(np.stack([GREY] * 3, 2)), "PNG", transparency=(CLEAR,) * 3),
    "deep-grey.png": lambda: png16(1),
    "deep-colour.png": lambda: png16(3),
    "mask.bmp": bmp,
}


@pytest.mark.parametrize("name", FILES)
def test_transparency_beside_the_channels_is_kept(tmp_path, name):
    if name.startswith("deep"):
        pytest.importorskip("imagecodecs")
    content = FILES[name]()
    (tmp_path / name).write_bytes(content)
    assert sniff(content[:512], lambda at, count: content[at : at + count]).alpha
    source = open_source(str(tmp_path), reading=Reading(alpha="keep"))
    pixels = source.read(0)
    full = 65535 if name.startswith("deep") else 255
    assert pixels.shape == (2 if "grey" in name else 4, 4, 6)
    assert torch.equal(pixels[-1].int(), torch.from_numpy(np.where(GREY == CLEAR, 0, full)).int())
    if "palette" not in name:
        assert np.array_equal(pixels[0].int(), GREY * np.int32(full // 255))
    below = open_source(str(tmp_path), reading=Reading(background=0)).read(0)
    assert np.array_equal(below[0].int(), np.where(GREY == CLEAR, 0, pixels[0].int()))


def test_files_without_transparency_have_none():
    for kind, image in ("GIF", palette()), ("PNG", palette()), ("BMP", palette().convert("RGB")):
        content = saved(image, kind)
        assert not sniff(content).alpha
        assert sniff(content[:40]).width == 6
