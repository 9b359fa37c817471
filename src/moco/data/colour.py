"""Photometric changes for batches of float images in [0, 1], each sample with parameters of its own.

Parameters stay on the CPU, where choosing rows by them makes no device wait. Every operation equals
torchvision's of the same name on float tensors. Images of one or more than
three channels have no hue and no saturation; brightness and contrast apply to them as they are.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

OPERATIONS = ("brightness", "contrast", "saturation", "hue")


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
    for place in range(len(OPERATIONS)):
        for number, operation in enumerate((brightness, contrast, saturation, hue)):
            rows = (chosen & (order[:, place] == number)).nonzero().flatten()
            if len(rows):
                here, factor = rows.to(images.device), factors[rows, number].to(images.device)
                images[here] = operation(images[here], factor)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply by the factor."""
    return (images * factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Move away from (or towards, below 1) the image's mean grey."""
    return _blend(images, luma(images).mean((1, 2, 3), keepdim=True), factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Move away from (or towards, below 1) each pixel's own grey."""
    return _blend(images, luma(images), factor) if images.shape[1] == 3 else images


def hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by a share of the colour circle; value and saturation of each pixel stay."""
    if images.shape[1] != 3:
        return images
    red, green, blue = images.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    per_chroma = 1 / torch.where(chroma == 0, 1, chroma)
    sixth = torch.where(
        value == red,
        (green - blue) * per_chroma,
        torch.where(value == green, (blue - red) * per_chroma + 2, (red - green) * per_chroma + 4),
    )
    sixth += 6 * shift.view(-1, 1, 1)
    result = torch.empty_like(images)
    for channel, offset in enumerate(
        (3, 1, -1)
    ):  # how far from where the channel is least, of a circle of six
        far = sixth + offset
        far.sub_((far * (1 / 6)).round_(), alpha=6).abs_()  # faster than `remainder`
        torch.addcmul(value, chroma, (2 - far).clamp_(0, 1), value=-1, out=result[:, channel])
    return result


def luma(images: Tensor) -> Tensor:
    """Grey of RGB images (ITU-R BT.601 weights), other images as they are: (N, 1 or channels, H, W)."""
    if images.shape[1] != 3:
        return images
    red, green, blue = images.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def grayscale(images: Float[Tensor, "N channels H W"], chosen: Bool[Tensor, " N"]) -> None:
    """Give the chosen RGB images three equal channels, in place."""
    rows = chosen.nonzero().flatten().to(images.device)
    if len(rows) and images.shape[1] == 3:
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
    if len(rows):
        down = _gaussian(sigma[rows], images.shape[2])[:, None].to(images.device)
        across = _gaussian(sigma[rows], images.shape[3])[:, None].to(images.device)
        rows = rows.to(images.device)
        images[rows] = torch.matmul(torch.matmul(down, images[rows]), across.transpose(2, 3))


def _gaussian(sigma: Tensor, extent: int) -> Tensor:
    """(N, extent, extent): share of each input pixel in each output pixel, cut at four deviations."""
    reach = math.ceil(4 * float(sigma.max()))
    output = torch.arange(extent, dtype=sigma.dtype, device=sigma.device)
    padded = torch.arange(-reach, extent + reach, dtype=sigma.dtype, device=sigma.device)
    distance = (padded - output[:, None]) / sigma[:, None, None]
    weights = torch.exp(-0.5 * distance**2) * (distance.abs() <= 4)
    folded = weights[:, :, reach : reach + extent].clone()
    folded[:, :, 0] += weights[:, :, :reach].sum(2)
    folded[:, :, -1] += weights[:, :, reach + extent :].sum(2)
    return folded.div_(folded.sum(2, keepdim=True))


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(other.expand_as(images), images, factor.view(-1, 1, 1, 1)).clamp_(0, 1)
