"""What is out of the ordinary about an image file that can be read, and what was done with it."""

import io
from pathlib import Path

from PIL import Image, ImageCms

from moco.data.form import Form
from moco.data.header import Header
from moco.data.reading import Reading

_ENDINGS = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".webp": "WEBP", ".tif": "TIFF",
    ".tiff": "TIFF", ".ppm": "PNM", ".pgm": "PNM", ".gif": "GIF",
}  # fmt: skip


def remarks(name: str, content: bytes, header: Header, form: Form, reading: Reading) -> list[str]:
    """Sentences about a readable file, each the same for all files it applies to."""
    notes = []
    ending = _ENDINGS.get(Path(name).suffix.lower())
    if ending not in (None, header.format):
        notes.append(f"misnamed: {header.format} under another ending, read as what it is")
    if header.depth == 16:
        notes.append("16 bits per channel: kept" if form.dtype.itemsize == 2 else "16 bits: scaled to 8")
    elif header.depth == 32:
        kept = form.dtype.is_floating_point
        done = "kept" if kept else "scaled to the set's depth"
        notes.append(f"floating point, signed or more than 16 bits: {done}")
    if header.orientation != 1:
        notes.append("EXIF orientation: turned upright")
    if header.format == "JPEG":
        notes += _jpeg(content)
    try:
        with Image.open(io.BytesIO(content)) as image:
            notes += _by_pillow(image, header, form, reading)
    except Exception:  # what Pillow cannot open was read by another library
        pass
    return notes


def _by_pillow(image: Image.Image, header: Header, form: Form, reading: Reading) -> list[str]:
    notes = []
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and header.format != "JPEG":
        notes.append("animated or many pages: the first is read")
    if image.mode == "CMYK":
        notes.append("CMYK: converted to RGB")
    elif image.mode in ("P", "PA"):
        notes.append("palette: converted to RGB")
    elif image.mode == "1":
        notes.append("1 bit per pixel: black and white")
    if image.mode in ("LA", "RGBA", "PA", "La", "RGBa") or "transparency" in image.info:
        done = {
            "composite": f"composited over {reading.background:g} of white",
            "drop": "dropped",
            "keep": "kept",
        }
        notes.append(f"transparency: {done[reading.alpha]}")
    elif image.mode in ("L", "1", "I;16", "F") and form.channels == 3:
        notes.append("grey: three equal channels")
    if profile := image.info.get("icc_profile"):
        try:
            ImageCms.ImageCmsProfile(io.BytesIO(profile))
        except Exception:
            notes.append("broken colour profile: ignored")
    return notes


def _jpeg(content: bytes) -> list[str]:
    notes = []
    if after := len(content) - content.rfind(b"\xff\xd9") - 2:
        notes.append("bytes after the end of the JPEG: ignored" if after > 0 else "")
    place = content[:65536].find(b"Exif\0\0")
    if place >= 0 and not _sound(content[place + 6 : place + 65536]):
        notes.append("broken EXIF: ignored")
    try:
        import simplejpeg

        simplejpeg.decode_jpeg(content, min_height=1, min_width=1)  # an eighth shows the damage too
    except ModuleNotFoundError:
        pass
    except ValueError as error:
        if "Corrupt JPEG data" in str(error):
            notes.append("damaged: decodes, but some of its pixels are wrong")
    return [note for note in notes if note]


def _sound(tiff: bytes) -> bool:
    """Whether EXIF's first directory lies where it says."""
    order = {b"II": "little", b"MM": "big"}.get(tiff[:2])
    if order is None or len(tiff) < 10:
        return False
    start = int.from_bytes(tiff[4:8], order)  # type: ignore[arg-type]
    count = int.from_bytes(tiff[start : start + 2], order)  # type: ignore[arg-type]
    return start >= 8 and 0 < count < 1000 and start + 2 + 12 * count <= len(tiff)
