"""What an image file says of itself in its first bytes: format, size, channels and depth.

Nothing is decoded here, so a million files cost seconds and a decompression bomb costs nothing.
"""

import struct
from collections.abc import Callable
from typing import NamedTuple

FIRST = 512  # bytes that hold the header of most files
_UPRIGHT = range(5, 9)  # orientations that swap height and width
_TIFF_SIZES = {1: 1, 3: 2, 4: 4, 16: 8}
_START_OF_FRAME = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})


class Header(NamedTuple):
    """What a file says of itself.

    Attributes:
        format: JPEG, PNG, GIF, BMP, WEBP, TIFF or PNM.
        width, height: of the image the right way up, pixels; 0 if the file does not say.
        channels: of colour (1 grey, 3 colour, more for scientific images), without transparency.
        depth: bits per channel: 8, 16, or 32 for what is read as floating point: that, signed integers, and
            integers of more bits.
        alpha: whether it has transparency.
        orientation: EXIF's, 1 to 8.
    """

    format: str
    width: int
    height: int
    channels: int = 3
    depth: int = 8
    alpha: bool = False
    orientation: int = 1


Read = Callable[[int, int], bytes]


def sniff(first: bytes, read: Read | None = None) -> Header | None:
    """The header of a file, or None if it is of no known format or ends too early.

    Args:
        first: its first `FIRST` bytes, or all of it.
        read: (offset, count) to bytes, for headers that lie further in; None if `first` is all.
    """
    if read is None:

        def read(offset: int, count: int) -> bytes:
            return first[offset : offset + count]

    try:
        if first[:2] == b"\xff\xd8":
            return _jpeg(first, read)
        if first[:8] == b"\x89PNG\r\n\x1a\n" and first[12:16] == b"IHDR":
            return _png(first, read)
        if first[:6] in (b"GIF87a", b"GIF89a"):
            return _gif(first, read)
        if first[:2] == b"BM":
            return _bmp(first)
        if first[:4] == b"RIFF" and first[8:12] == b"WEBP":
            return _webp(first)
        if first[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return _tiff(first, read)
        if first[:2] in (b"P2", b"P3", b"P5", b"P6"):
            return _pnm(first)
    except (struct.error, IndexError, ValueError, OSError):
        pass
    return None


def _png(first: bytes, read: Read) -> Header:
    width, height, bits, colour = struct.unpack(">IIBB", first[16:26])
    alpha, place = colour in (4, 6), 8
    for _ in range(100):  # chunks; of other types, tRNS names what is transparent
        chunk = read(place, 8)
        if alpha or len(chunk) < 8 or chunk[4:] == b"IDAT":
            break
        alpha = chunk[4:] == b"tRNS"
        place += 12 + int.from_bytes(chunk[:4])
    return Header("PNG", width, height, 1 if colour in (0, 4) else 3, 16 if bits == 16 else 8, alpha)


def _gif(first: bytes, read: Read) -> Header:
    width, height, flags = struct.unpack("<HHB", first[6:11])
    place = 13 + (6 << (flags & 7) if flags & 0x80 else 0)  # behind the palette
    alpha, inside = False, False
    for _ in range(1000):  # extensions of the first image, and their blocks
        block = read(place, 4)
        if len(block) < 4 or not (inside or block[:1] == b"!"):
            break
        if inside:
            place, inside = place + 1 + block[0], block[0] > 0
        elif block[1] == 0xF9:
            alpha = bool(block[3] & 1)
            break
        else:
            place, inside = place + 2, True
    return Header("GIF", width, height, alpha=alpha)


def _bmp(first: bytes) -> Header:
    (size,) = struct.unpack("<I", first[14:18])
    if size == 12:
        return Header("BMP", *struct.unpack("<HH", first[18:22]))
    width, height = struct.unpack("<ii", first[18:26])
    masks = size >= 56 and first[30:34] == b"\3\0\0\0"  # of red, green, blue and alpha
    return Header("BMP", abs(width), abs(height), alpha=masks and any(first[66:70]))


def _jpeg(data: bytes, read: Read) -> Header | None:
    place, start, orientation = 2, 0, 1  # start: where in the file `data` begins
    for _ in range(1000):  # segments
        at = place - start
        if at + 10 > len(data):
            data, start, at = read(place, FIRST), place, 0
        if data[at] != 0xFF:
            return None
        code = data[at + 1]
        if code == 0xFF:  # fill byte
            place += 1
            continue
        if code in _START_OF_FRAME:
            height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
            if orientation in _UPRIGHT:
                height, width = width, height
            colours, depth = 1 if data[at + 9] == 1 else 3, 8 if data[at + 4] <= 8 else 16
            return Header("JPEG", width, height, colours, depth, False, orientation)
        if code in (0xD9, 0xDA):
            return None
        size = data[at + 2] << 8 | data[at + 3]
        if code == 0xE1 and size > 16:
            orientation = _exif(read(place + 4, min(size - 2, 4096))) or orientation
        place += 2 + size
    return None


def _exif(segment: bytes) -> int | None:
    """The orientation in a JPEG's EXIF segment."""
    if segment[:6] != b"Exif\0\0" or segment[6:8] not in (b"II", b"MM"):
        return None
    tiff, order = segment[6:], "<" if segment[6:8] == b"II" else ">"
    try:
        (place,) = struct.unpack(order + "I", tiff[4:8])
        (count,) = struct.unpack(order + "H", tiff[place : place + 2])
        for entry in range(min(count, 64)):
            tag, _, _, value = struct.unpack(
                order + "HHIH", tiff[place + 2 + 12 * entry : place + 12 + 12 * entry]
            )
            if tag == 274 and 1 <= value <= 8:
                return int(value)
    except struct.error:
        pass
    return None


def _webp(first: bytes) -> Header | None:
    kind = first[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(first[at : at + 3], "little") + 1 for at in (24, 27))
        return Header("WEBP", width, height, alpha=bool(first[20] & 0x10))
    if kind == b"VP8L" and first[20] == 0x2F:
        bits = int.from_bytes(first[21:25], "little")
        return Header("WEBP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, alpha=bool(bits >> 28 & 1))
    if kind == b"VP8 " and first[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", first[26:30])
        return Header("WEBP", width & 0x3FFF, height & 0x3FFF)
    return None


def _tiff(first: bytes, read: Read) -> Header | None:
    order = "<" if first[:2] == b"II" else ">"
    big = first[2:4] in (b"+\0", b"\0+")
    (place,) = struct.unpack(order + ("Q" if big else "I"), first[8:16] if big else first[4:8])
    head, size, inline = (8, 20, 8) if big else (2, 12, 4)
    (count,) = struct.unpack(order + ("Q" if big else "H"), read(place, head))
    entries = read(place + head, min(count, 200) * size)
    tags: dict[int, tuple[int, ...]] = {}
    for start in range(0, len(entries) - size + 1, size):
        entry = entries[start : start + size]
        tag, kind, number = struct.unpack(order + ("HHQ" if big else "HHI"), entry[: size - inline])
        if tag not in (256, 257, 258, 262, 274, 277, 338, 339) or kind not in (1, 3, 4, 16):
            continue
        number = min(number, 64)
        width = _TIFF_SIZES[kind] * number
        data = entry[-inline:]
        if width > inline:
            data = read(struct.unpack(order + ("Q" if big else "I"), data)[0], width)
        tags[tag] = struct.unpack(order + {1: "B", 3: "H", 4: "I", 16: "Q"}[kind] * number, data[:width])
    if 256 not in tags or 257 not in tags:
        return None
    samples, extra = tags.get(277, (1,))[0], tags.get(338, ())
    alpha = 1 if any(kind in (1, 2) for kind in extra) else 0
    photometric, bits = tags.get(262, (1,))[0], max(tags.get(258, (1,)))
    channels = 3 if photometric in (3, 5, 6, 8) else samples - alpha
    depth = 32 if tags.get(339, (1,))[0] in (2, 3) or bits > 16 else 16 if bits > 8 else 8
    orientation = tags.get(274, (1,))[0]
    size_ = tags[256][0], tags[257][0]
    return Header("TIFF", *(size_[::-1] if orientation in _UPRIGHT else size_), channels, depth,
                  bool(alpha), orientation if 1 <= orientation <= 8 else 1)  # fmt: skip


def _pnm(first: bytes) -> Header | None:
    words: list[int] = []
    for line in first[2:].splitlines():
        for word in line.partition(b"#")[0].split():
            words.append(int(word))
            if len(words) == 3:
                channels = 1 if first[1:2] in b"25" else 3
                return Header("PNM", words[0], words[1], channels, 16 if words[2] > 255 else 8)
    return None
