"""Images made by program: ten kinds of pattern in random colours, for demonstrations and tests.

The kind of pattern is the class; colours, scale, angle, position, bending and noise are random and
say nothing about it. So neighbours in raw pixels share colours rather than kinds, and features that
see past colour and position find the kind.
"""

import math

import numpy as np
import torch
from torch import Tensor

from moco import chance
from moco.data.source import ArraySource

CLASSES = ("stripes", "checks", "dots", "rings", "rays", "zigzag", "waves", "bricks", "grid", "spiral")


def procedural(count: int, *, size: int = 32, seed: int = 0, split: str = "train") -> ArraySource:
    """A source of `count` patterns, classes in turn; another split has other images of the same kinds.

    Args:
        count: number of images.
        size: height and width, pixels.
        seed: image i is a function of seed, split and i alone.
        split: "train" or "test".
    """
    draws = chance.uniform(seed, f"procedural {split}", np.arange(count), 16).float()
    labels = torch.arange(count) % len(CLASSES)
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")

    def per_image(column: int, low: float, high: float) -> Tensor:
        return (low + (high - low) * draws[:, column]).view(-1, 1, 1)

    x, y = x - per_image(0, -0.9, 0.9), y - per_image(1, -0.9, 0.9)
    angle = per_image(2, 0, 2 * math.pi)
    u, v = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    bend = per_image(3, -0.25, 0.25)
    u, v = u + bend * v**2, v + bend * u**2
    frequency, phase = per_image(4, 7, 14), per_image(5, 0, 2 * math.pi)

    pattern = torch.empty(count, size, size)
    for label in range(len(CLASSES)):
        rows = slice(label, None, len(CLASSES))
        pattern[rows] = _pattern(label, u[rows], v[rows], frequency[rows], phase[rows])
    edge = per_image(6, 2, 8)  # how sharply the two colours meet
    share = torch.sigmoid(edge * pattern)[:, None]
    dark, light = 0.5 * draws[:, 7:10, None, None], 0.5 + 0.5 * draws[:, 10:13, None, None]
    swap = draws[:, 13, None, None, None] < 0.5
    images = torch.where(swap, share * light + (1 - share) * dark, share * dark + (1 - share) * light)
    noise = chance.generator(seed, f"procedural noise {split}")
    images = images + 0.06 * torch.randn(images.shape, generator=noise)
    pixels = images.clamp_(0, 1).mul_(255).round_().to(torch.uint8)
    return ArraySource(pixels, labels, name=f"procedural ({split})", classes=CLASSES)


def _pattern(label: int, u: Tensor, v: Tensor, frequency: Tensor, phase: Tensor) -> Tensor:
    """Values around zero whose sign says which of two colours a pixel has."""
    a, b = frequency * u + phase, frequency * v + phase
    radius, turn = torch.hypot(u, v), torch.atan2(v, u)
    match CLASSES[label]:
        case "stripes":
            return a.sin()
        case "checks":
            return 2 * a.sin() * b.sin()
        case "dots":
            return a.sin() + b.sin() - 1
        case "rings":
            return (1.3 * frequency * radius + phase).sin()
        case "rays":
            return ((frequency / 1.5).round() * turn + phase).sin()
        case "zigzag":
            return (a + 2 * torch.asin(torch.sin(1.5 * b))).sin()
        case "waves":
            return (a + 1.5 * (0.8 * b).sin()).sin()
        case "bricks":
            row = torch.floor(b / math.pi)
            return torch.minimum((b / math.pi - row - 0.25) * 4, (a + 1.5 * row).sin() + 0.8)
        case "grid":
            return torch.maximum((2 * a).sin(), (2 * b).sin()) - 0.8
        case _:
            return (1.2 * frequency * radius + 2 * turn + phase).sin()
