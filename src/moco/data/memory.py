"""How much memory decoding an image takes, known from its header, and room for it among threads."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from moco.data.form import Form
from moco.data.header import Header

_LARGE = 1 << 25  # bytes whose memory the system gets back at once
_STORED = 4  # bytes
_WEBP = 12  # two canvases, and a frame on its way to Pillow


class Need(NamedTuple):
    """Bytes that an image takes while it is decoded, its file among them.

    Attributes:
        least: if the first decoder takes it.
        most: if Pillow has to.
    """

    least: int
    most: int


def need(content: bytes, header: Header, form: Form, factor: int = 1) -> Need:
    """What an image takes by its header.

    Args:
        content: the whole file.
        header: of the file.
        form: that its pixels are brought to.
        factor: by which a JPEG's height and width are reduced.

    Returns:
        An upper estimate: 7 bytes a pixel for 8-bit RGB by Pillow, 3 for a JPEG of one scan by simplejpeg.
    """
    pixels = header.width * header.height
    result = form.channels * form.dtype.itemsize
    stored = stored_pixel(header)
    if header.format == "JPEG":
        planes = coefficients(content) * pixels
        reduced = -(-header.width // factor) * -(-header.height // factor)
        colours = header.channels
        same = colours == result and header.orientation == 1
        least = reduced * (colours if same else colours + result)
        return Need(len(content) + planes + least, len(content) + planes + reduced * (stored + result))
    if header.format == "WEBP":
        stored += _WEBP
    raw = (header.channels + header.alpha) * header.depth // 8
    if header.depth > 8:
        stored = max(stored, raw)
    copies = 1
    if header.format == "TIFF" and (
        header.orientation != 1 or not 0 <= len(content) - raw * pixels <= pixels * raw // 8 + 2**20
    ):
        copies = 2  # turned ones are copied; compressed ones too, and one strip may hold all of them
    if header.depth > 8 and content[:2] == b"P3":
        copies = 2  # the words without comments, and their values in four bytes each
    most = copies * (len(content) + pixels * stored) + pixels * result
    return Need(most, most)


def stored_pixel(header: Header) -> int:
    """Bytes that a pixel takes in Pillow's memory."""
    return 1 if header.channels == 1 and header.depth == 8 and not header.alpha else _STORED


def coefficients(content: bytes) -> int:
    """Bytes per pixel that a JPEG of several scans keeps until the last one is read; 0 for one scan."""
    place, components = 2, 0
    while place + 9 < len(content) and content[place] == 0xFF:
        code = content[place + 1]
        if code == 0xFF:  # fill byte
            place += 1
            continue
        if code in (0xC2, 0xC6, 0xCA, 0xCE):
            return 2 * content[place + 9]
        if code in range(0xC0, 0xD0) and code not in (0xC4, 0xC8, 0xCC):
            components = content[place + 9]
        elif code == 0xDA:
            return 2 * components if content[place + 4] < components else 0
        place += 2 + (content[place + 2] << 8 | content[place + 3])
    return 0


class Room:
    """Room for images that threads decode: those that find none wait."""

    def __init__(self) -> None:
        self._condition, self._taken = threading.Condition(), 0

    @contextmanager
    def take(self, amount: int, limit: int) -> Iterator[None]:
        """Hold so many bytes while no more than the limit are held; an image alone never waits."""
        with self._condition:
            self._condition.wait_for(lambda: not self._taken or self._taken + amount <= limit)
            self._taken += amount
        try:
            yield
        finally:
            if amount >= _LARGE:
                trim()
            with self._condition:
                self._taken -= amount
                self._condition.notify_all()


def trim() -> None:
    """Give free memory back to the system; glibc keeps it in an arena for each thread otherwise."""
    if (malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        malloc_trim(0)


ROOM = Room()
"""That of this process."""
