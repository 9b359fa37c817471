"""Image files to pixels."""

from pathlib import Path
from typing import IO

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

_EIGHT_BIT = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "La", "RGBa"}


def decode(path: Path | IO[bytes], name: str | None = None) -> UInt8[Tensor, "3 H W"]:
    """The pixels of an image file, upright, as RGB; a name for messages, if it is not its path.

    Raises:
        RuntimeError: if the file is no image, is broken, or holds more than 8 bits per channel
            (which a conversion to 8 bits would clip to white).
    """
    try:
        with Image.open(path) as image:
            return to_tensor(ImageOps.exif_transpose(image), name or str(path))
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise RuntimeError(f"cannot decode {name or path}: {error}") from error


def to_tensor(image: Image.Image, name: str) -> UInt8[Tensor, "3 H W"]:
    """The pixels of an 8-bit PIL image as RGB; grey becomes three equal channels, alpha is dropped.

    Raises:
        RuntimeError: if the image holds more than 8 bits per channel.
    """
    if image.mode not in _EIGHT_BIT:
        raise RuntimeError(
            f"{name} has pixels of mode {image.mode}, more than 8 bits per channel, which conversion "
            "would clip; give such images as an 8-bit copy"
        )
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
