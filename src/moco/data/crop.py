"""Random resized crops: which box, and its pixels, for whole batches at once.

Boxes are those of torchvision's `RandomResizedCrop`; pixels are those of its bilinear, antialiased
`resized_crop`, computed as two small matrix products for each image.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import interpolate

ATTEMPTS = 10
DRAWS = 4 * ATTEMPTS  # area, ratio, top and left of each attempt
_STRIP = 1 << 20  # pixels


def crop_boxes(
    draws: Float[Tensor, "N 40"],
    heights: Int[Tensor, " N"],
    widths: Int[Tensor, " N"],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Int[Tensor, "N 4"]:
    """The first of ten random boxes that fits each image, else the largest central one.

    Args:
        draws: uniform numbers in (0, 1), `DRAWS` per image.
        heights, widths: of the images, pixels.
        scale: smallest and largest share of the image's area.
        ratio: narrowest and widest box, width over height; drawn uniformly in its logarithm.

    Returns:
        Top, left, height and width of each box, pixels.
    """
    area_draw, ratio_draw, top_draw, left_draw = np.moveaxis(draws.numpy().reshape(-1, ATTEMPTS, 4), 2, 0)
    rows, columns = heights.numpy()[:, None], widths.numpy()[:, None]
    area = rows * columns * (scale[0] + (scale[1] - scale[0]) * area_draw)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = np.exp(low + (high - low) * ratio_draw)
    width = np.sqrt(area * aspect).round().astype(np.int64)
    height = np.sqrt(area / aspect).round().astype(np.int64)
    fits = (width > 0) & (width <= columns) & (height > 0) & (height <= rows)

    each, first = np.arange(len(fits)), fits.argmax(1)
    width, height = width[each, first], height[each, first]
    top = (top_draw[each, first] * (rows[:, 0] - height + 1)).astype(np.int64)
    left = (left_draw[each, first] * (columns[:, 0] - width + 1)).astype(np.int64)
    boxes = np.stack([top, left, height, width], axis=1)
    found = fits[each, first]
    if not found.all():
        boxes[~found] = _central_boxes(rows[~found, 0], columns[~found, 0], ratio)
    return torch.from_numpy(boxes)


def _central_boxes(heights: np.ndarray, widths: np.ndarray, ratio: tuple[float, float]) -> np.ndarray:
    """The central box of each image that comes closest to its whole and keeps within the ratio."""
    aspect = widths / heights
    width = np.where(aspect > ratio[1], (heights * ratio[1]).round().astype(np.int64), widths)
    height = np.where(aspect < ratio[0], (widths / ratio[0]).round().astype(np.int64), heights)
    return np.stack([(heights - height) // 2, (widths - width) // 2, height, width], axis=1)


def resize(image: Shaped[Tensor, "channels H W"], height: int, width: int) -> Shaped[Tensor, "channels h w"]:
    """Antialiased bilinear interpolation: torchvision's `resize`, without a copy of a large image.

    Args:
        image: any values; 8-bit ones stay 8-bit, others become float.
        height, width: of the result, pixels.
    """
    if tuple(image.shape[1:]) == (height, width):
        return image if image.dtype == torch.uint8 else image.float()
    if image.dtype == torch.uint8:
        decoded = image.stride(0) == 1 and image.shape[0] == 3  # colours side by side
        batch = image[None].contiguous(memory_format=torch.channels_last) if decoded else image[None]
        return interpolate(batch, (height, width), mode="bilinear", antialias=True)[0]
    return resize_float(image, height, width)


def resize_float(
    image: Shaped[Tensor, "channels H W"], height: int, width: int
) -> Float[Tensor, "channels h w"]:
    """`resize` in floating point, of any image: across by strips of rows, then down."""
    across = torch.empty(1, len(image), image.shape[1], width)
    rows = max(1, _STRIP // image.shape[2])
    for top in range(0, image.shape[1], rows):
        strip = image[None, :, top : top + rows].float()
        across[:, :, top : top + rows] = interpolate(
            strip, (strip.shape[2], width), mode="bilinear", antialias=True
        )
    return interpolate(across, (height, width), mode="bilinear", antialias=True)[0]


def resize_boxes(
    images: Float[Tensor, "N channels H W"], boxes: Int[Tensor, "N 4"], flip: Tensor, size: int
) -> Float[Tensor, "N channels size size"]:
    """Each image's box, resized to a square by antialiased bilinear interpolation, mirrored where asked.

    Args:
        images: any values; the result stays within their range.
        boxes: top, left, height, width of each, pixels.
        flip: (N,) bool, mirror left and right.
        size: of the result, pixels.
    """
    rows = _weights(boxes[:, 0], boxes[:, 2], size, images.shape[2], images.dtype)
    columns = _weights(boxes[:, 1], boxes[:, 3], size, images.shape[3], images.dtype)
    columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    return torch.matmul(torch.matmul(rows[:, None], images), columns[:, None].transpose(2, 3))


def _weights(start: Tensor, length: Tensor, size: int, extent: int, dtype: torch.dtype) -> Tensor:
    """(N, size, extent): share of each input pixel in each output pixel, a triangle as wide as the scale."""
    start, length = start.to(dtype)[:, None], length.to(dtype)[:, None]
    scale = length / size
    centre = start + (torch.arange(size, dtype=dtype, device=start.device) + 0.5) * scale
    pixel = torch.arange(extent, dtype=dtype, device=start.device) + 0.5
    distance = (pixel - centre[:, :, None]).abs() / scale.clamp(min=1)[:, :, None]
    inside = (pixel > start) & (pixel < start + length)
    weights = (1 - distance).clamp_(min=0).mul_(inside[:, None])
    return weights.div_(weights.sum(2, keepdim=True))
