"""Encoded images to pixels: every format to the channels and depth of its set, never clipped.

JPEG goes to simplejpeg where it is installed, which gives the pixels Pillow gives, sooner; whatever
it declines, and every other format, goes to Pillow, except what Pillow would cut down: 16-bit colour
and TIFF of other than one or three channels go to imagecodecs and tifffile.
"""

import importlib
import importlib.util
import io
import logging
import warnings
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin
from torch import Tensor

from moco.data.form import FULL, Form
from moco.data.header import Header, sniff
from moco.data.reading import Reading

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
_TURNS: dict[int, Any] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}
"""From stored rows and columns to upright ones, by EXIF orientation."""


class Unreadable(RuntimeError):
    """An image that cannot be read: which, and why."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"cannot decode {name}: {reason}")
        self.name, self.reason = name, reason


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
        Unreadable: if it is no image, broken, too large, or does not fit the form.
    """
    header = check(content, name, reading) if header is None else header
    try:
        array, alpha = _pixels(content, header, factor)
        array = _transparency(array, alpha, form, reading)
        result = _depth(_channels(array, form, name), form, name)
        return torch.from_numpy(np.ascontiguousarray(result)).permute(2, 0, 1)
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
    if size == 0:
        raise Unreadable(name, f"its header says {header.width} x {header.height} pixels")
    if size * max(1, header.channels / 4) > reading.max_pixels:
        raise Unreadable(
            name,
            f"{header.width} x {header.height} pixels of {header.channels} channels, more than "
            f"reading.max_pixels = {reading.max_pixels:,}",
        )
    return header


def from_pil(image: Image.Image, name: str, form: Form, reading: Reading) -> Shaped[Tensor, "channels H W"]:
    """The pixels of a decoded PIL image in the form of its set.

    Raises:
        Unreadable: if it does not fit the form.
    """
    array, alpha = _from_pil(image)
    result = _depth(_channels(_transparency(array, alpha, form, reading), form, name), form, name)
    return torch.from_numpy(np.ascontiguousarray(result)).permute(2, 0, 1)


def _pixels(content: bytes, header: Header, factor: int) -> tuple[np.ndarray, bool]:
    """(H, W, channels) as they are stored, upright, and whether the last channel is transparency."""
    if header.format == "JPEG":
        array = _fast_jpeg(content, factor)
        if array is not None:
            turn = _TURNS.get(header.orientation)
            return (array if turn is None else turn(array)), False
    deep_colour = header.depth > 8 and (header.channels == 3 or header.alpha)
    if header.format == "PNG" and deep_colour:
        return _library("imagecodecs", header).png_decode(content), header.alpha
    if header.format == "TIFF" and (header.channels not in (1, 3) or deep_colour):
        return _tiff(content, header)
    try:
        return _by_pillow(content, header, factor)
    except UnidentifiedImageError:
        if header.format != "TIFF":
            raise
        return _tiff(content, header)


def _by_pillow(content: bytes, header: Header, factor: int) -> tuple[np.ndarray, bool]:
    with Image.open(io.BytesIO(content), formats=[_PLUGINS.get(header.format, header.format)]) as image:
        if header.format == "JPEG":
            if factor > 1:
                image.draft(None, (max(1, image.width // factor), max(1, image.height // factor)))
            array, alpha = _from_pil(image)
            turn = _TURNS.get(header.orientation)
            return (array if turn is None else turn(array)), alpha
        image.load()
        return _from_pil(ImageOps.exif_transpose(image))


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
            f"{header.format} with {header.channels} channels of {header.depth} bits needs {name}: "
            "pip install 'momentum-contrast[deep]'"
        ) from None


def _tiff(content: bytes, header: Header) -> tuple[np.ndarray, bool]:
    tifffile = _library("tifffile", header)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong is raised as well
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages.first
        array = page.asarray()
        if array.ndim == 3 and getattr(page, "planarconfig", 1) == 2:
            array = np.moveaxis(array, 0, -1)
    array = array[..., None] if array.ndim == 2 else array
    turn = _TURNS.get(header.orientation)
    array = array if turn is None else turn(array)
    return (array if array.dtype in (np.uint8, np.uint16) else array.astype(np.float32)), header.alpha


def _from_pil(image: Image.Image) -> tuple[np.ndarray, bool]:
    mode = image.mode
    if mode in _WITH_ALPHA or "transparency" in image.info:
        image = image.convert(_WITH_ALPHA.get(mode, "LA" if mode == "L" else "RGBA"))
    elif mode == "1":
        image = image.convert("L")
    elif mode in _TO_RGB:
        image = image.convert("RGB")
    array = np.array(image)
    if image.mode.startswith("I;16"):
        array = array.astype(np.uint16)
    elif image.mode in ("I", "F"):
        array = array.astype(np.float32)
    return (array[..., None] if array.ndim == 2 else array), image.mode in ("LA", "RGBA")


def _transparency(array: np.ndarray, alpha: bool, form: Form, reading: Reading) -> np.ndarray:
    """Composite, drop or keep transparency; give it to images without where others have it."""
    full = 1.0 if array.dtype == np.float32 else float(np.iinfo(array.dtype).max)
    if not alpha:
        if not form.alpha:
            return array
        return np.concatenate([array, np.full_like(array[..., :1], full)], 2)
    if reading.alpha == "keep":
        return array
    colour = array[..., :-1]
    if reading.alpha == "drop":
        return colour
    share = array[..., -1:].astype(np.float32) / full
    mixed = colour * share + reading.background * full * (1 - share)
    return mixed.astype(np.float32) if array.dtype == np.float32 else (mixed + 0.5).astype(array.dtype)


def _channels(array: np.ndarray, form: Form, name: str) -> np.ndarray:
    if array.shape[2] == form.channels:
        return array
    colours = form.channels - form.alpha
    if array.shape[2] - form.alpha == 1 and colours > 1:
        return np.concatenate([array[..., :1]] * colours + [array[..., 1:]] * form.alpha, 2)
    if array.shape[2] == 3 and form.channels == 1:
        grey = array @ np.array([0.2989, 0.587, 0.114], dtype=np.float32)
        return (grey if array.dtype == np.float32 else (grey + 0.5).astype(array.dtype))[..., None]
    raise Unreadable(name, f"it has {array.shape[2]} channels where the set has {form.channels}")


def _depth(array: np.ndarray, form: Form, name: str) -> np.ndarray:
    """Scaled to the set's depth: full brightness stays full brightness."""
    if array.dtype == np.float32:
        if not np.isfinite(array).all():
            raise Unreadable(name, "it holds values that are not finite")
        if form.dtype == torch.float32:
            return array
        if array.min() < 0 or array.max() > 1:
            raise Unreadable(
                name,
                f"floating-point values from {array.min():.4g} to {array.max():.4g} among "
                f"{FULL[form.dtype]}-level images; only values in [0, 1] can be scaled to these",
            )
        kind = np.uint8 if form.dtype == torch.uint8 else np.uint16
        return (array * FULL[form.dtype] + 0.5).astype(kind)
    if form.dtype == torch.float32:
        return array.astype(np.float32) / np.iinfo(array.dtype).max
    if array.dtype == np.uint8 and form.dtype == torch.uint16:
        return array.astype(np.uint16) * np.uint16(257)
    if array.dtype == np.uint16 and form.dtype == torch.uint8:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return array
