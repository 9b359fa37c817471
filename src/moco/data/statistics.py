"""What the pixels of a set are like: the range its values take, and mean and deviation of each channel."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from moco.channels import IMAGENET_MEAN
from moco.data.augmentation import SMALL, Augmentation
from moco.data.encoded import looking
from moco.data.form import FULL
from moco.data.source import Source
from moco.data.tiles import TILE, tiles
from moco.data.unreadable import Unreadable
from moco.words import some

_DEPTHS = (10, 12, 14, 16)  # bits that cameras and scanners put into 16


@dataclass(frozen=True)
class Statistics:
    """Of a set of images.

    Attributes:
        range: pixel values that stand for 0 and 1.
        mean, std: of each channel, of pixels in that range.
    """

    range: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def fitted(views: Augmentation, source: Source) -> Augmentation:
    """The settings with the range and, where it is left open, the mean and deviation of the images.

    Raises:
        ValueError: if the mean given is that of images with another number of channels.
    """
    if views.mean in (IMAGENET_MEAN, SMALL.mean) and source.channels != 3:
        views = replace(views, mean=None, std=None)  # those of photographs say nothing of these
    if views.mean is not None and len(views.mean) != source.channels:
        raise ValueError(
            f"views.mean has {some(len(views.mean), 'value')} but {source.name} has images of "
            f"{some(source.channels, 'channel')}; measure it with --views.mean None --views.std None"
        )
    _check_range(views.range, source)
    if views.mean is not None and source.dtype == torch.uint8:
        return replace(views, range=views.range or (0.0, 255.0))
    if views.mean is not None and views.range is not None:
        return views
    found = measure(source, range=views.range)
    return replace(views, range=found.range, mean=views.mean or found.mean, std=views.std or found.std)


def _check_range(given: tuple[float, float] | None, source: Source) -> None:
    """Refuse the range of images of another depth, such as that in the recipe of another run.

    Raises:
        ValueError: if it is one.
    """
    if given is None:
        return
    high, wrong = given[1], False
    if source.dtype == torch.uint8:
        wrong = high > 255
    elif given == (0.0, 255.0):
        wrong = source.dtype == torch.uint16 or measure(source).range[1] < high / 2
    if wrong:
        raise ValueError(
            f"views.range is {given[0]:g} to {high:g}, but {source.name} has "
            f"{str(source.dtype).removeprefix('torch.')} pixels of another range; find it anew with "
            "--views.range None --views.mean None --views.std None"
        )


def measure(source: Source, *, images: int = 1024, range: tuple[float, float] | None = None) -> Statistics:
    """Range, mean and standard deviation, over evenly spaced images; unreadable ones are passed over.

    8-bit images range over 0 to 255, 16-bit ones over the fewest of 10, 12, 14 or 16 bits that hold
    every value seen, and floating-point ones over 0 to 1 if no value lies outside, else over the
    values seen.

    Args:
        source: the images.
        images: how many to look at.
        range: of the pixel values; None finds it.

    Raises:
        ValueError: if none of them can be read.
    """
    chosen = np.unique(np.linspace(0, len(source) - 1, min(images, len(source))).astype(int))
    total = torch.zeros(2, source.channels, dtype=torch.float64)
    count, low, high, reason = 0, np.inf, -np.inf, ""
    for i in chosen:
        try:
            with looking(source, int(i)) as image:
                found = sums(image)
        except Unreadable as error:
            reason = str(error)
            continue
        total += torch.stack([found.values, found.squares])
        count += found.pixels
        low, high = min(low, float(found.least.min())), max(high, float(found.most.max()))
    if not count:
        raise ValueError(
            f"none of the {len(chosen)} images of {source.name} that were tried can be read: {reason}"
        )
    low, high = range or _range(source.dtype, low, high)
    mean = total[0] / count
    std = (total[1] / count - mean.square()).clamp(min=0).sqrt() / (high - low)
    std = torch.where(std > 1e-6, std, 1 / 255)  # a constant channel is nobody's unit
    mean = (mean - low) / (high - low)
    return Statistics(
        (low, high),
        tuple(float(f"{m:.4g}") for m in mean.tolist()),
        tuple(float(f"{s:.4g}") for s in std.tolist()),
    )


class Sums(NamedTuple):
    """Of the pixels of an image: sums of values and squares, least and greatest value, of each channel."""

    values: Float[Tensor, " channels"]
    squares: Float[Tensor, " channels"]
    least: Float[Tensor, " channels"]
    most: Float[Tensor, " channels"]
    pixels: int


def sums(image: Shaped[Tensor, "channels H W"]) -> Sums:
    """`Sums` in double precision, tile by tile: no large image is copied."""
    height, width = image.shape[1:]
    total = torch.zeros(2, len(image), dtype=torch.float64)
    ends = torch.tensor([[torch.inf], [-torch.inf]], dtype=torch.float64).repeat(1, len(image))
    room = torch.empty(len(image) * min(height * width, TILE), dtype=torch.float64)
    for rows, columns in tiles(height, width):
        tile = image[:, rows, columns]
        values = room[: tile.numel()].view(tile.shape).copy_(tile).flatten(1)
        torch.minimum(ends[0], values.amin(1), out=ends[0])
        torch.maximum(ends[1], values.amax(1), out=ends[1])
        total[0] += values.sum(1)
        total[1] += values.square_().sum(1)
    return Sums(total[0], total[1], ends[0], ends[1], height * width)


def _range(dtype: torch.dtype, low: float, high: float) -> tuple[float, float]:
    if dtype == torch.uint8:
        return 0.0, 255.0
    if dtype == torch.uint16:
        return 0.0, float(next(2**bits - 1 for bits in _DEPTHS if high <= 2**bits - 1))
    if low >= 0 and high <= FULL[dtype]:
        return 0.0, 1.0
    return low, high if high > low else low + 1
