"""What decoding takes is known from the header, kept within bounds, and shared among threads."""

import gc
import io
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moco.data.crop import resize_float
from moco.data.decode import check, decode
from moco.data.doctor import look
from moco.data.encoded import FolderSource
from moco.data.form import Form
from moco.data.loader import Loader
from moco.data.memory import ROOM, Room, coefficients, need
from moco.data.reading import Reading
from moco.data.statistics import sums
from moco.data.tiles import TILE, tiles
from moco.data.unreadable import Unreadable
from moco.data.views import Views
from tiny import tiny_recipe

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MARGIN = 24_000_000  # bytes: tiles, and what allocators keep
measured = pytest.mark.skipif(not CLEAR.exists(), reason="measures memory as Linux tells it")


def memory(field: str) -> int:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


class Peak:
    """Most memory taken within a block, beyond that before it."""

    def __enter__(self):
        gc.collect()
        CLEAR.write_text("5")
        self.before = memory("VmRSS")
        return self

    def __exit__(self, *_):
        self.taken = memory("VmHWM") - self.before


def encoded(mode: str, kind: str, size: tuple[int, int], **options) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 1).save(buffer, kind, **options)
    return buffer.getvalue()


@measured
@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "PNG", {}), ("L", "PNG", {}), ("RGBA", "PNG", {}), ("I;16", "PNG", {}), ("RGB", "JPEG", {}),
        ("RGB", "JPEG", {"progressive": True, "subsampling": 0}), ("CMYK", "JPEG", {}), ("RGB", "WEBP", {}),
        ("RGBA", "WEBP", {"lossless": True}), ("RGB", "TIFF", {}), ("F", "TIFF", {}),
        ("RGB", "TIFF", {"compression": "tiff_adobe_deflate"}), ("RGB", "BMP", {}), ("P", "GIF", {}),
    ],
)  # fmt: skip
def test_decoding_takes_no_more_than_its_header_says(mode, kind, options):
    reading = Reading(max_memory=2**30)
    decode(encoded(mode, kind, (9, 9), **options), "x", Form(), reading)  # loads the decoder
    content = encoded(mode, kind, (3000, 1500), **options)
    expected = need(content, check(content, "x", reading), Form())
    with Peak() as peak:
        image = decode(content, "x", Form(), reading)
    assert image.shape == (3, 1500, 3000)
    assert expected.least <= expected.most
    assert peak.taken <= expected.most + MARGIN


_KEPT_AND_MEASURED = """
import torch
from moco import heap
from moco.ablate.cell import Peak
heap.keep()
watch = Peak(torch.device("cpu"))
left = [torch.ones(1 << 20) for _ in range(150)]  # 600 MiB that malloc keeps
del left
watch.begin(0, 10, 1)
step = torch.ones(50 << 20)
watch.progress(1, {})
print(watch.mib)
"""


@measured
def test_the_memory_of_a_cell_is_that_of_its_steps():
    words = [sys.executable, "-c", _KEPT_AND_MEASURED]
    out = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert 150 < float(out) < 250


@measured
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_doctor_makes_no_copy_of_a_large_image(tmp_path, kind):
    (tmp_path / f"x.{kind.lower()}").write_bytes(encoded("RGB", kind, (6000, 4000)))
    source = FolderSource(tmp_path)
    with Peak() as peak:
        seen = look(source, 0)
    assert seen.remarks == ("constant: every pixel is the same",)
    assert peak.taken <= 7 * 24_000_000 + MARGIN  # in double precision one copy is 576 MB


@measured
def test_crops_of_deep_images_make_no_copy_either(tmp_path):
    for i in range(2):
        buffer = io.BytesIO()
        Image.fromarray(np.full((4000, 5000), 999 + i, np.uint16)).save(buffer, "PNG")
        (tmp_path / f"{i}.png").write_bytes(buffer.getvalue())
    source = FolderSource(tmp_path)
    settings = type(tiny_recipe().views)(size=16, mean=(0.5,), std=(0.2,), range=(0.0, 65535.0))
    loader = Loader(source, Views(settings), 2, workers=1)
    with Peak() as peak:
        batch = loader.batch(0)
    assert peak.taken <= 6 * 20_000_000 + MARGIN
    expected = (source.read(int(batch.index[0]))[0, 0, 0].item() / 65535 - 0.5) / 0.2
    assert batch.views[0][0].shape == (1, 16, 16)
    assert abs(batch.views[0][0].mean().item() - expected) < 0.2  # but for brightness


def test_what_takes_more_memory_than_allowed_is_refused_and_says_how_much():
    content = encoded("RGB", "PNG", (100, 80))
    takes = 7 * 8000 + len(content)
    decode(content, "x", Form(), Reading(max_memory=takes))
    with pytest.raises(
        Unreadable,
        match=rf"takes about {takes:,} bytes of memory, more than reading.max_memory = {takes - 1:,}",
    ):
        decode(content, "x", Form(), Reading(max_memory=takes - 1))
    pytest.importorskip("simplejpeg")
    jpeg = encoded("RGB", "JPEG", (100, 80))
    decode(jpeg, "x", Form(), Reading(max_memory=3 * 8000 + len(jpeg)))
    with pytest.raises(Unreadable, match=r"more than reading.max_memory"):  # another decoder needs more
        decode(jpeg[:-40], "x", Form(), Reading(max_memory=3 * 8000 + len(jpeg)))
    wide = struct.pack(">II", 1_000_001, 1).join((content[:16], content[24:]))
    with pytest.raises(Unreadable, match="its header says 1000001 x 1 pixels"):
        decode(wide, "x", Form(), Reading())


def test_a_file_larger_than_the_memory_allowed_is_not_read(tmp_path):
    (tmp_path / "x.bmp").write_bytes(encoded("RGB", "BMP", (50, 50)))
    source = FolderSource(tmp_path, reading=Reading(max_memory=5000))
    with pytest.raises(Unreadable, match=r"its file has more than reading.max_memory = 5,000 bytes"):
        source.read(0)


def test_a_decoder_that_sees_a_larger_image_than_the_header_is_not_followed():
    """A second IHDR, which Pillow would go by."""
    content = encoded("L", "PNG", (40, 40))
    head = b"IHDR" + struct.pack(">IIBBBBB", 4000, 4000, 8, 2, 0, 0, 0)
    second = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    with pytest.raises(Unreadable, match="its decoder says 4000 x 4000 pixels of RGB"):
        decode(content[:33] + second + content[33:], "x", Form(), Reading())


def test_jpegs_of_several_scans_are_known():
    assert coefficients(encoded("RGB", "JPEG", (64, 64))) == 0
    assert coefficients(encoded("RGB", "JPEG", (64, 64), progressive=True)) == 6
    assert coefficients(encoded("L", "JPEG", (64, 64), progressive=True)) == 2
    plain = bytearray(encoded("RGB", "JPEG", (64, 64)))
    plain[plain.index(b"\xff\xda") + 4] = 1  # the first scan holds one of the three components
    assert coefficients(bytes(plain)) == 6
    assert coefficients(b"\xff\xd8\xff") == 0


def test_images_share_the_room_and_large_ones_take_turns():
    room, limit = Room(), 100
    inside, most, lock = 0, 0, threading.Lock()

    def large(amount: int) -> None:
        nonlocal inside, most
        with room.take(amount, limit):
            with lock:
                inside += amount
                most = max(most, inside)
            time.sleep(0.01)
            with lock:
                inside -= amount

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(large, [30, 100, 60, 45, 55, 99, 40, 26]))
    assert 60 < most <= limit
    with room.take(1000, limit):  # alone it never waits
        pass
    with pytest.raises(RuntimeError, match="inside"), room.take(90, limit):
        raise RuntimeError("inside")
    with room.take(90, limit):  # and errors give it back
        pass


def test_the_system_gets_the_memory_of_large_images_back_at_once(monkeypatch):
    trimmed = []
    monkeypatch.setattr("moco.data.memory.trim", lambda: trimmed.append(True))
    room = Room()
    with room.take(1 << 20, 1 << 30):
        pass
    assert not trimmed
    with room.take(1 << 26, 1 << 30):
        assert not trimmed
    assert trimmed == [True]


def test_sources_hold_room_while_they_decode(tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(encoded("RGB", "PNG", (100, 100)))
    source = FolderSource(tmp_path, reading=Reading(max_memory=80_000))
    taken: list[int] = []
    monkeypatch.setattr(
        "moco.data.encoded.decode", lambda *_, **__: taken.append(ROOM._taken) or torch.zeros(3, 100, 100)
    )
    source.read(0)
    look(source, 0)
    assert [amount > 70_000 for amount in taken] == [True, True]
    assert ROOM._taken == 0


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (1, 3 * TILE + 1), (900, 700), (3, TILE), (TILE + 9, 1)])
def test_tiles_cover_an_image_once(shape):
    covered = np.zeros(shape, np.uint8)
    for rows, columns in tiles(*shape):
        covered[rows, columns] += 1
        assert covered[rows, columns].size <= TILE
    assert (covered == 1).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_of_many_tiles_are_those_of_one(orientation, monkeypatch):
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    array = rng.integers(0, 256, (37, 53, 3), np.uint8)
    for kind, mode, form in [("PNG", "RGBA", Form()), ("JPEG", "RGB", Form(3, torch.uint16)),
                             ("TIFF", "L", Form()), ("JPEG", "RGB", Form())]:  # fmt: skip
        buffer = io.BytesIO()
        Image.fromarray(array).convert(mode).save(buffer, kind, exif=exif)
        expected = decode(buffer.getvalue(), "x", form, Reading())
        with monkeypatch.context() as patch:
            patch.setattr("moco.data.tiles.TILE", 20)
            assert torch.equal(decode(buffer.getvalue(), "x", form, Reading()), expected)


def test_resizing_by_strips_is_resizing_at_once(monkeypatch):
    image = torch.randint(0, 256, (3, 75, 61), dtype=torch.uint8)
    expected = torch.nn.functional.interpolate(
        image.float()[None], (20, 31), mode="bilinear", antialias=True
    )[0]
    torch.testing.assert_close(resize_float(image, 20, 31), expected, atol=1e-4, rtol=0)
    monkeypatch.setattr("moco.data.crop._STRIP", 200)
    torch.testing.assert_close(resize_float(image, 20, 31), expected, atol=1e-4, rtol=0)


def test_sums_by_tiles_are_those_of_the_image(monkeypatch):
    for module in "tiles", "statistics":
        monkeypatch.setattr(f"moco.data.{module}.TILE", 50)
    image = torch.randint(0, 256, (4, 30, 41), dtype=torch.uint8)
    values = image.double().flatten(1)
    found = sums(image)
    assert torch.equal(found.values, values.sum(1))
    assert torch.equal(found.squares, values.square().sum(1))
    assert torch.equal(torch.stack([found.least, found.most]), torch.stack([values.amin(1), values.amax(1)]))
    assert found.pixels == 30 * 41
