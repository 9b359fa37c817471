"""Encoded images to pixels: every format to the channels and depth of its set, never clipped.

JPEG goes to simplejpeg where it is installed, which gives the pixels Pillow gives, sooner; whatever
it declines, and every other format, goes to Pillow, except what Pillow would cut down: 16-bit colour
and TIFF of other than one or three channels go to imagecodecs and tifffile, 16-bit PPM is read here.
"""

import importlib
import importlib.util
import io
import logging
import math
import re
import warnings
from typing import Any

import numpy as np
from jaxtyping import Shaped
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin
from torch import Tensor

from moco.data.form import Form
from moco.data.header import Header, sniff
from moco.data.memory import need, stored_pixel
from moco.data.reading import Reading
from moco.data.tiles import assemble, from_array
from moco.data.unreadable import Unreadable
from moco.words import some

# remarks on metadata, which nothing here depends on
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_PLUGINS = {
    "PNM": "PPM",
    "TIFF": TiffImagePlugin.TiffImageFile.format,
    "WEBP": WebPImagePlugin.WebPImageFile.format,
}
"""Pillow's name of a format where it differs, and the two it would not load by itself."""
_TO_RGB = {"CMYK", "YCbCr", "HSV", "LAB", "RGBX", "P", "RGB"}
_WITH_ALPHA = {"LA": "LA", "La": "LA", "RGBA": "RGBA", "RGBa": "RGBA", "PA": "RGBA"}
_PPM = re.compile(rb"P[36]" + 3 * rb"(?:\s|#[^\r\n]*[\r\n])+(\d{1,9})" + rb"\s")
_COMMENT = re.compile(rb"#[^\r\n]*")
_ORIENTATION = 0x0112  # EXIF's number of it
_BITS, _PHOTOMETRIC = 258, 262  # TIFF's
_ONE_BYTE = ("1", "L", "P")  # modes of which Pillow stores a byte a pixel
MAX_SIDE = 1_000_000  # pixels


def decode(
    content: bytes,
    name: str,
    form: Form,
    reading: Reading,
    *,
    header: Header | None = None,
    factor: int = 1,
) -> Shaped[Tensor, "channels H W"]:
    """The pixels of an encoded image, upright, in the form of its set.

    Args:
        content: the whole file.
        name: what to call it when it is unreadable.
        form: channels and type of the result.
        reading: limits and rules.
        header: its header, if known already.
        factor: 1, 2, 4 or 8; a JPEG may be decoded at this fraction of its height and width.

    Raises:
        Unreadable: if it is no image, broken, too large, or does not fit the form; or if decoding it
            takes more than `reading.max_memory`.
    """
    header = check(content, name, reading) if header is None else header
    takes = need(content, header, form, factor)
    _afford(takes.least, name, reading)
    try:
        array = _fast_jpeg(content, factor) if header.format == "JPEG" else None
        if array is not None:
            return from_array(array, False, header.orientation, form, reading, name)
        found = _by_library(content, header, reading, name)
        if found is None:
            _afford(takes.most, name, reading)
            return _by_pillow(content, header, form, reading, name, factor)
        return from_array(*found, header.orientation, form, reading, name)
    except Unreadable:
        raise
    except Exception as error:  # decoders raise nearly everything on damaged files
        raise Unreadable(name, str(error) or type(error).__name__) from error


def check(content: bytes, name: str, reading: Reading) -> Header:
    """The header of an encoded image that may be decoded.

    Raises:
        Unreadable: if it is no image, or larger than `reading.max_pixels`.
    """
    if not content:
        raise Unreadable(name, "the file is empty")
    header = sniff(content)
    if header is None:
        raise Unreadable(name, f"no image of a known format, or cut off in its header: {content[:12]!r}")
    size = header.width * header.height
    if size == 0 or max(header.width, header.height) > MAX_SIDE:
        raise Unreadable(name, f"its header says {header.width} x {header.height} pixels")
    if size * max(1, header.channels / 4) > reading.max_pixels:
        raise Unreadable(
            name,
            f"{header.width} x {header.height} pixels of {some(header.channels, 'channel')}, more than "
            f"reading.max_pixels = {reading.max_pixels:,}",
        )
    return header


def from_pil(image: Image.Image, name: str, form: Form, reading: Reading) -> Shaped[Tensor, "channels H W"]:
    """The pixels of a decoded PIL image in the form of its set.

    Raises:
        Unreadable: if it does not fit the form.
    """
    array, alpha = _from_pil(image)
    return from_array(array, alpha, 1, form, reading, name)


def _afford(amount: int, name: str, reading: Reading) -> None:
    if amount > reading.max_memory:
        raise Unreadable(
            name,
            f"decoding it takes about {amount:,} bytes of memory, more than "
            f"reading.max_memory = {reading.max_memory:,}",
        )


def _by_library(
    content: bytes, header: Header, reading: Reading, name: str
) -> tuple[np.ndarray, bool] | None:
    """What Pillow would cut down, (H, W, channels) as stored, and whether the last is transparency."""
    deep_colour = header.depth > 8 and (header.channels == 3 or header.alpha)
    if header.format == "PNG" and deep_colour:
        return _library("imagecodecs", header).png_decode(content), header.alpha
    if header.format == "PNM" and deep_colour:
        return _deep_ppm(content, header), False
    if header.format == "TIFF" and (header.channels not in (1, 3) or deep_colour):
        return _tiff(content, header, reading, name)
    return None


def _by_pillow(
    content: bytes, header: Header, form: Form, reading: Reading, name: str, factor: int
) -> Shaped[Tensor, "channels H W"]:
    try:
        image = Image.open(io.BytesIO(content), formats=[_PLUGINS.get(header.format, header.format)])
    except UnidentifiedImageError:
        if header.format != "TIFF":
            raise
        return from_array(*_tiff(content, header, reading, name), header.orientation, form, reading, name)
    with image:
        taken = image.width * image.height * (1 if image.mode in _ONE_BYTE else 4)
        if taken > header.width * header.height * stored_pixel(header):
            raise Unreadable(name, f"its decoder says {image.width} x {image.height} pixels of {image.mode}")
        if header.format == "JPEG" and factor > 1:
            image.draft(None, (max(1, image.width // factor), max(1, image.height // factor)))
        if header.format == "TIFF":
            _in_native_order(image)
        image.load()
        width, height = image.size
        whole_numbers = header.format in ("PNM", "PNG") and header.depth == 16
        black = _black(image) if image.mode.startswith("I;16") else 0

        def piece(rows: slice, columns: slice) -> tuple[np.ndarray, bool]:
            all_of_it = rows == slice(0, height) and columns == slice(0, width)
            box = columns.start, rows.start, columns.stop, rows.stop
            array, alpha = _from_pil(image if all_of_it else image.crop(box), whole_numbers)
            if header.depth == 32 and array.dtype == np.uint8:  # Pillow drops the sign
                array = array.view(np.int8).astype(np.float32)
            return (black - array if black else array), alpha

        turned = header.orientation if header.format == "JPEG" else image.getexif().get(_ORIENTATION, 1)
        turned = turned if turned in range(1, 9) else 1
        return assemble(piece, height, width, turned, form, reading, name)


def _fast_jpeg(content: bytes, factor: int) -> np.ndarray | None:
    """By simplejpeg, or None where it is missing or declines."""
    if not FAST_JPEG:
        return None
    import simplejpeg

    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(content)
        if space not in ("YCbCr", "Gray"):
            return None
        limits = {"min_height": -(-height // factor), "min_width": -(-width // factor)} if factor > 1 else {}
        return simplejpeg.decode_jpeg(content, "GRAY" if space == "Gray" else "RGB", **limits)
    except ValueError:  # damaged, or odd; Pillow is the judge
        return None


FAST_JPEG = importlib.util.find_spec("simplejpeg") is not None


def _library(name: str, header: Header) -> Any:
    """A library for what Pillow would cut down to 8 bits or three channels."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise ValueError(
            f"{header.format} with {some(header.channels, 'channel')} of {header.depth} bits needs {name}: "
            "pip install 'momentum-contrast[deep]'"
        ) from None


def _tiff(content: bytes, header: Header, reading: Reading, name: str) -> tuple[np.ndarray, bool]:
    tifffile = _library("tifffile", header)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong is raised as well
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages.first
        _afford(2 * len(content) + 3 * page.nbytes, name, reading)
        array = page.asarray()
        if array.ndim == 3 and getattr(page, "planarconfig", 1) == 2:
            array = np.moveaxis(array, 0, -1)
        if header.channels == 1 and array.dtype.kind == "u" and page.photometric == 0:
            grey = array[..., 0] if array.ndim == 3 else array
            np.subtract(2**page.bitspersample - 1, grey, out=grey)
    array = array[..., None] if array.ndim == 2 else array
    return (array if array.dtype in (np.uint8, np.uint16) else array.astype(np.float32)), header.alpha


def _in_native_order(image: ImageFile.ImageFile) -> None:
    """Have numbers that libtiff unpacks taken in this machine's order of bytes, in which it gives them.

    Pillow does so for unsigned 16 bits only, and takes others in the order of the file.
    """
    for number, tile in enumerate(image.tile):
        if tile.codec_name == "libtiff" and isinstance(tile.args, tuple):
            mode, *others = tile.args
            native = re.sub(";(16|32)B", r";\1N", mode)
            image.tile[number] = tile._replace(args=(native, *others))


def _black(image: Image.Image) -> int:
    """The value that is black where a grey TIFF says that 0 is white; else 0."""
    tags = getattr(image, "tag_v2", {})
    return 2 ** tags.get(_BITS, (16,))[0] - 1 if tags.get(_PHOTOMETRIC) == 0 else 0


def _deep_ppm(content: bytes, header: Header) -> np.ndarray:
    """A PPM of 16 bits, binary (P6) or in words (P3), scaled to full brightness as Pillow scales PGM."""
    found = _PPM.match(content)
    if found is None or (int(found[1]), int(found[2])) != (header.width, header.height):
        raise ValueError("its header is damaged")
    full, shape = int(found[3]), (header.height, header.width, 3)
    if not 255 < full < 65536:
        raise ValueError(f"its header says values up to {full}")
    count, words = math.prod(shape), content[1:2] == b"3"
    if len(content) - found.end() < 2 * count - words:  # two bytes a value, or a digit and a space
        raise ValueError(f"the file is truncated: {len(content):,} bytes")
    if words:
        text = _COMMENT.sub(b"", content[found.end() :])
        stored = np.fromstring(text, np.int32, sep=" ")[:count]  # a count makes numpy invent what lacks
        if len(stored) < count or stored.min() < 0 or stored.max() > full:
            raise ValueError(f"it does not hold {count:,} values from 0 to {full}")
    else:
        stored = np.frombuffer(content, ">u2", count, found.end())
    stored = stored.reshape(shape)
    if full == 65535:
        return stored.astype(np.uint16)
    scaled = np.round(np.arange(65536) * (65535 / full)).clip(max=65535).astype(np.uint16)
    array = np.empty(shape, np.uint16)
    for row, values in zip(array, stored, strict=True):  # an index takes four times the memory of its row
        row[:] = scaled[values]
    return array


def _from_pil(image: Image.Image, whole_numbers: bool = False) -> tuple[np.ndarray, bool]:
    """Pixels (H, W, channels), and whether the last is transparency; `whole_numbers` says that mode I holds
    16 bits."""
    mode = image.mode
    if mode in _WITH_ALPHA or "transparency" in image.info:
        image = image.convert(_WITH_ALPHA.get(mode, "LA" if mode == "L" else "RGBA"))
    elif mode == "1":
        image = image.convert("L")
    elif mode in _TO_RGB:
        image = image.convert("RGB")
    array = np.array(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and whole_numbers):
        array = array.astype(np.uint16)
    elif image.mode in ("I", "F"):
        array = array.astype(np.float32)
    return (array[..., None] if array.ndim == 2 else array), image.mode in ("LA", "RGBA")
