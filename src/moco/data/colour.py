"""Photometric changes for batches of float images in [0, 1], each sample with parameters of its own.

Parameters are on the CPU, where choosing rows by them waits for no device; what an operation needs of them
is sent. Every operation equals torchvision's of the same name on float tensors. Images of one or more than
three channels have no hue and no saturation; brightness and contrast apply to them as they are.

On CPUs large images are changed one at a time, in place, so that all operations find them in the cache;
RGB ones by OpenCV where it is installed (`moco.data.opencv`).
"""

import functools
import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moco.device import send

OPERATIONS = ("brightness", "contrast", "saturation", "hue")
LUMA = (0.2989, 0.587, 0.114)
"""Share of red, green and blue in grey (ITU-R BT.601)."""
_LARGE = 1 << 15  # values of an image
_BLOCK = 32  # output rows of a product


def alone(images: Tensor) -> bool:
    """Whether these images are better changed one at a time."""
    return images.device.type == "cpu" and images[0].numel() >= _LARGE


@functools.cache
def opencv() -> str | None:
    """The version of OpenCV; None where it is not there, or lacks a library of the system."""
    try:
        import cv2
    except ImportError:
        return None
    return cv2.__version__


def opencv_for(kind: str, channels: int, values: int) -> str | None:
    """The version of OpenCV that changes images of so many channels and values on a kind of device.

    None where none does: it changes RGB images on CPUs that are better changed one at a time.
    """
    return opencv() if kind == "cpu" and channels == 3 and values >= _LARGE else None


def by_opencv(images: Tensor) -> bool:
    """Whether OpenCV changes these images; it wants them channels last."""
    return images.ndim == 4 and (
        opencv_for(images.device.type, images.shape[1], images[0].numel()) is not None
    )


def jitter(
    images: Float[Tensor, "N channels H W"],
    factors: Float[Tensor, "N 4"],
    order: Int[Tensor, "N 4"],
    chosen: Bool[Tensor, " N"],
) -> None:
    """Apply the four operations to the chosen images, in place, in each image's own order.

    Args:
        images: in [0, 1].
        factors: brightness, contrast and saturation factor and hue shift of each image.
        order: which of `OPERATIONS` comes first, second, third and fourth.
        chosen: images to change.
    """
    operations = brightness, contrast, saturation, hue
    if len(images) == 1 or alone(images):
        for row in chosen.nonzero().flatten().tolist():
            for number in order[row].tolist():
                operations[number](images[row : row + 1], send(factors[row : row + 1, number], images.device))
        return
    for place in range(len(OPERATIONS)):
        for number, operation in enumerate(operations):
            rows = (chosen & (order[:, place] == number)).nonzero().flatten()
            if len(rows):
                here, factor = (send(part, images.device) for part in (rows, factors[rows, number]))
                images[here] = operation(images[here], factor)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply by the factor, in place, as all four operations do."""
    return images.mul_(factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Move away from (or towards, below 1) the image's mean grey."""
    means = images.mean((2, 3), keepdim=True)
    grey = luma(means) if images.shape[1] == 3 else means.mean(1, keepdim=True)
    return _blend(images, grey, factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Move away from (or towards, below 1) each pixel's own grey."""
    return _blend(images, luma(images), factor) if images.shape[1] == 3 else images


def hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by a share of the colour circle; value and saturation of each pixel stay.

    With the least channel m taken away, and in units of the chroma C, a pixel of hue h sixths has in the
    channel whose own hue is h_c the value clamp(2 - |h - h_c|, 0, 1), and |h - h_c| is
    1 + (sum of the channels) - 2 (this channel), signed like the next channel less the one after it. So
    turned pixels are m + clamp(2C - |C (h - h_c) + C turn|, 0, C): no division, and no case by case.
    """
    if images.shape[1] != 3:
        return images
    turn = 6 * shift.view(-1, 1, 1, 1)
    red, green, blue = images.split(1, 1)
    least = torch.minimum(red, green)
    torch.minimum(least, blue, out=least)
    chroma = torch.maximum(red, green)
    torch.maximum(chroma, blue, out=chroma).sub_(least)
    side = torch.cat([green - blue, blue - red, red - green], 1)
    images.sub_(least)
    total = (red + green).add_(blue).add_(chroma)
    angle = torch.sub(total, images, alpha=2)
    angle = torch.copysign(angle.clamp_(min=0), side, out=angle).add_(turn * chroma).abs_()
    if shift.device.type != "cpu" or float(shift.abs().max()) > 1 / 6:  # else |h - h_c| > 3 is 0 both ways
        angle = torch.minimum(angle, 6 * chroma - angle, out=angle)
    torch.sub(2 * chroma, angle, out=images)
    return torch.minimum(images.clamp_(min=0), chroma, out=images).add_(least)


def luma(images: Tensor) -> Tensor:
    """Grey of RGB images, other images as they are: (N, 1 or channels, H, W)."""
    if images.shape[1] != 3:
        return images
    red, green, blue = images.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(1)


def grayscale(images: Float[Tensor, "N channels H W"], chosen: Bool[Tensor, " N"]) -> None:
    """Give the chosen RGB images three equal channels, in place."""
    if images.shape[1] != 3:
        return
    if len(images) == 1 or alone(images):
        for row in chosen.nonzero().flatten().tolist():
            images[row] = luma(images[row : row + 1])[0]
        return
    rows = send(chosen.nonzero().flatten(), images.device)
    if len(rows):
        images[rows] = luma(images[rows]).expand(-1, 3, -1, -1)


def blur(
    images: Float[Tensor, "N channels H W"], sigma: Float[Tensor, " N"], chosen: Bool[Tensor, " N"]
) -> None:
    """Gaussian blur of the chosen images, in place; pixels beyond the edge repeat it.

    Args:
        images: any values.
        sigma: standard deviation for each image, pixels.
        chosen: images to blur.
    """
    rows = chosen.nonzero().flatten()
    if alone(images):
        for row in rows.tolist():
            _blur_one(images[row], float(sigma[row]))
    elif len(rows):
        reach = math.ceil(4 * float(sigma[rows].max()))
        rows, sigma = send(rows, images.device), send(sigma[rows], images.device)
        down = _blur_matrices(sigma, images.shape[2], reach)[:, None]
        across = (
            down
            if images.shape[2] == images.shape[3]
            else _blur_matrices(sigma, images.shape[3], reach)[:, None]
        )
        images[rows] = torch.matmul(torch.matmul(down, images[rows]), across.transpose(2, 3))


def solarize(images: Float[Tensor, "N channels H W"], chosen: Bool[Tensor, " N"]) -> None:
    """Invert values from 1/2 up of the chosen images in [0, 1], in place."""
    rows = chosen.nonzero().flatten()
    if len(rows):
        rows = send(rows, images.device)
        bright = images[rows]
        images[rows] = torch.where(bright >= 0.5, 1 - bright, bright)


def _blur_one(image: Tensor, sigma: float) -> None:
    """Blur one image: each block of rows, then of columns, is a product with what the kernel reaches."""
    channels, height, width = image.shape
    kernel = gaussian(sigma)
    reach = len(kernel) // 2
    if not reach:
        return
    band = torch.zeros(_BLOCK, _BLOCK + 2 * reach)
    band.as_strided((_BLOCK, len(kernel)), (band.shape[1] + 1, 1)).copy_(kernel)
    padded = image.new_empty(channels, height + 2 * reach, width)
    padded[:, reach:-reach] = image
    padded[:, :reach], padded[:, -reach:] = image[:, :1], image[:, -1:]
    across = image.new_empty(channels, height, width + 2 * reach)
    for top in range(0, height, _BLOCK):
        rows = min(_BLOCK, height - top)
        part = padded[:, top : top + rows + 2 * reach]
        across[:, top : top + rows, reach:-reach] = torch.matmul(band[:rows, : part.shape[1]], part)
    across[:, :, :reach] = across[:, :, reach : reach + 1]
    across[:, :, -reach:] = across[:, :, -reach - 1 : -reach]
    down = band.T.contiguous()
    for left in range(0, width, _BLOCK):
        columns = min(_BLOCK, width - left)
        part = across[:, :, left : left + columns + 2 * reach]
        image[:, :, left : left + columns] = torch.matmul(part, down[: part.shape[2], :columns])


def gaussian(sigma: float) -> Float[Tensor, " taps"]:
    """Weights of a Gaussian blur, cut at four deviations; an odd number of them that sum to 1."""
    reach = int(4 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float32) / sigma) ** 2)
    return weights / weights.sum()


def _blur_matrices(sigma: Tensor, extent: int, reach: int) -> Tensor:
    """(N, extent, extent): share of each input pixel in each output pixel, cut at four deviations, of
    which none is more than `reach` pixels."""
    output = torch.arange(extent, dtype=sigma.dtype, device=sigma.device)
    padded = torch.arange(-reach, extent + reach, dtype=sigma.dtype, device=sigma.device)
    distance = (padded - output[:, None]) / sigma[:, None, None]
    weights = torch.exp(-0.5 * distance**2) * (distance.abs() <= 4)
    folded = weights[:, :, reach : reach + extent].clone()
    folded[:, :, 0] += weights[:, :, :reach].sum(2)
    folded[:, :, -1] += weights[:, :, reach + extent :].sum(2)
    return folded.div_(folded.sum(2, keepdim=True))


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    factor = factor.view(-1, 1, 1, 1)
    return images.mul_(factor).add_(other * (1 - factor)).clamp_(0, 1)
