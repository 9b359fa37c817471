"""Images that are copies of each other: the same bytes, or the same picture resized, recompressed,
mirrored or cropped a little."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from moco.data.crop import resize_float

SIDE = 12  # pixels of the miniature that stands for an image
SHARES = (1.0, 0.9, 0.8)  # of height and width, central: how much of a picture its copy may show
THRESHOLD = 0.97  # correlation of miniatures
_ROWS = 1024


class Pair(NamedTuple):
    """Two images and how alike their miniatures are, 1 at most."""

    first: int
    second: int
    similarity: float


def digest(content: bytes) -> str:
    """What the same bytes share."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def miniatures(image: Shaped[Tensor, "channels H W"]) -> Float[Tensor, "views D"]:
    """Unit-length miniatures of an image: whole, and of central parts; all zero where nothing varies."""
    views = []
    for share in SHARES:
        height, width = (max(1, round(extent * share)) for extent in image.shape[1:])
        top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
        small = resize_float(image[:, top : top + height, left : left + width], SIDE, SIDE)
        peak = small.abs().max()
        small = small - small.mean((1, 2), keepdim=True)
        views.append(
            F.normalize(small.flatten(), dim=0) if small.std() > 1e-4 * peak else small.flatten() * 0
        )
    return torch.stack(views)


def exact(digests: Sequence[str], others: Sequence[str] | None = None) -> list[list[int]]:
    """Groups of images of the same bytes; with `others`, pairs of an image and the first such other."""
    if others is not None:
        known = {value: i for i, value in reversed(list(enumerate(others)))}
        return [[i, known[value]] for i, value in enumerate(digests) if value in known]
    groups = defaultdict(list)
    for i, value in enumerate(digests):
        groups[value].append(i)
    return [group for group in groups.values() if len(group) > 1]


def near(
    images: Float[Tensor, "N views D"],
    others: Float[Tensor, "M views D"] | None = None,
    *,
    channels: int = 3,
    threshold: float = THRESHOLD,
) -> list[Pair]:
    """Pairs whose miniatures correlate at least so much, in any of their parts and mirrored or not.

    Compares all with all: 60,000 images take minutes, a million would take days.

    Args:
        images: `miniatures` of each.
        others: of another set; None compares the images with each other.
        channels: of the images.
        threshold: of the correlation.
    """
    bank = images if others is None else others
    best: dict[tuple[int, int], float] = {}
    for one, other, similarity in _matches(images, bank, channels, threshold):
        if others is None:
            if one == other:
                continue
            one, other = min(one, other), max(one, other)
        best[one, other] = max(best.get((one, other), 0.0), similarity)
    return [Pair(one, other, round(value, 4)) for (one, other), value in sorted(best.items())]


def _matches(
    images: Tensor, bank: Tensor, channels: int, threshold: float
) -> Iterator[tuple[int, int, float]]:
    wholes = bank[:, 0]
    for start in range(0, len(images), _ROWS):
        rows = images[start : start + _ROWS]
        for view in range(rows.shape[1]):
            part = rows[:, view]
            mirrored = part.view(-1, channels, SIDE, SIDE).flip(3).flatten(1)
            for queries in part, mirrored:
                yield from _above(queries @ wholes.T, start, threshold)
        if bank is not images:  # parts of the others; within one set each image is a query in its turn
            for view in range(1, bank.shape[1]):
                for queries in rows[:, 0], rows[:, 0].view(-1, channels, SIDE, SIDE).flip(3).flatten(1):
                    yield from _above(queries @ bank[:, view].T, start, threshold)


def _above(similarity: Tensor, start: int, threshold: float) -> Iterable[tuple[int, int, float]]:
    found = (similarity >= threshold).nonzero()
    for one, other in found.tolist():
        yield start + one, other, float(similarity[one, other])
