"""How a representation does without labels: from two views of held-out images, nothing else."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from moco.encoder import Encoder
from moco.evaluate.features import Features, extract
from moco.evaluate.logistic import check_finite

PAIRS = 2000
"""Images whose two views are looked at, where no other number is asked for."""
_ROWS = 2048  # of a similarity matrix held at once


def retrieval(first: Float[Tensor, "M C"], second: Float[Tensor, "M C"]) -> float:
    """Share of images whose other view is the nearest of all M second views, in percent.

    Guessing gives 100 / M; a tie counts as a miss, so that collapsed features score 0.
    The pretext task on images it has not seen, without the dictionary's age.
    """
    first, second = F.normalize(first, dim=1), F.normalize(second, dim=1)
    hits = 0
    for start in range(0, len(first), _ROWS):
        similarity = first[start : start + _ROWS] @ second.T
        rows = torch.arange(len(similarity))
        own = similarity[rows, rows + start].clone()
        similarity[rows, rows + start] = -torch.inf
        hits += int((own > similarity.max(1).values).sum())
    return 100 * hits / len(first)


def alignment(first: Float[Tensor, "M C"], second: Float[Tensor, "M C"]) -> float:
    """Mean squared distance of an image's two views on the unit sphere: 0 when equal, 2 when unrelated.

    Source: Wang and Isola 2020, Section 4.1 (α = 2).
    """
    return (F.normalize(first, dim=1) - F.normalize(second, dim=1)).square().sum(1).mean().item()


def uniformity(vectors: Float[Tensor, "M C"]) -> float:
    """log of the mean of exp(−2 |x − y|²) over pairs of images, on the unit sphere: 0 when collapsed.

    Vectors spread evenly in many dimensions give about −4 + 8 / C.

    Source: Wang and Isola 2020, Section 4.1 (t = 2).
    """
    vectors = F.normalize(vectors.double(), dim=1)
    total = 0.0
    for chunk in vectors.split(_ROWS):
        total += (4 * (chunk @ vectors.T) - 4).exp().sum().item()
    count = len(vectors)
    return math.log((total - count) / (count * (count - 1)))  # without each vector's pair with itself


def rankme(features: Float[Tensor, "M D"]) -> float:
    """exp of the entropy of the singular values, taken as shares: 1 when all are multiples of one, at most D.

    Source: Garrido et al. 2023, "RankMe", Eqn. (1).
    """
    return _entropy_rank(torch.linalg.svdvals(features.double()))


def effective_rank(features: Float[Tensor, "M D"]) -> float:
    """The same of the centred features' covariance: directions that carry variance, 1 to D.

    Source: Roy and Vetterli 2007, of the eigenvalues of the covariance matrix.
    """
    centred = features.double() - features.double().mean(0)
    return _entropy_rank(torch.linalg.svdvals(centred).square())


def _entropy_rank(values: Tensor) -> float:
    shares = values / values.sum().clamp(min=1e-300)
    return torch.special.entr(shares).sum().exp().item()


def deviation(features: Float[Tensor, "M C"]) -> float:
    """Standard deviation of unit vectors over the images, times √C: 1 is even, 0 one point.

    Source: Chen and He 2021 (SimSiam), Section 4.1.
    """
    return F.normalize(features, dim=1).std(0, correction=0).square().sum().sqrt().item()


@torch.no_grad()
def diagnose(
    encoder: Encoder, pairs: Iterable[tuple[Float[Tensor, "N channels H W"], Float[Tensor, "N channels H W"]]]
) -> Iterator[tuple[str, float]]:
    """Yield the label-free measures of an encoder, in evaluation mode, on two views of the same images.

    Raises:
        ValueError: if there are fewer than two images, or the features are not finite.
    """
    found: tuple[list[Features], list[Features]] = [], []
    for pair in pairs:
        for features, view in zip(found, pair, strict=True):
            features.append(extract(encoder, [view]))
    yield from measure(*(Features(*map(torch.cat, zip(*features, strict=True))) for features in found))


def measure(one: Features, two: Features) -> Iterator[tuple[str, float]]:
    """Yield the label-free measures of the features of two views."""
    if len(one.trunk) < 2:
        raise ValueError(f"label-free diagnostics need at least two images, got {len(one.trunk)}")
    check_finite(one.trunk)
    yield "retrieval", round(retrieval(one.output, two.output), 3)
    yield "alignment", round(alignment(one.output, two.output), 5)
    yield "uniformity", round(uniformity(one.output), 5)
    yield "rankme", round(rankme(one.trunk), 3)
    yield "effective_rank", round(effective_rank(one.trunk), 3)
    yield "deviation", round(deviation(one.output), 5)


Trend = Literal["too early to say", "still improving", "flat", "collapsing"]


def trend(rows: Sequence[dict[str, float]]) -> Trend:
    """What the diagnostics of a run so far say about going on.

    Args:
        rows: with "retrieval" and "deviation", oldest first.

    "collapsing": queries gather in one point (deviation below 0.1, or less than half its best).
    "still improving": over the last half of the measurements retrieval rose by more than twice the
    noise of its steps and by at least one percent of its value. "flat": otherwise.
    """
    if len(rows) < 4:
        return "too early to say"
    best = max(row["deviation"] for row in rows)
    if rows[-1]["deviation"] < max(0.1, best / 2):
        return "collapsing"
    values = [row["retrieval"] for row in rows[len(rows) // 2 :]]
    if len(values) < 3:
        values = [row["retrieval"] for row in rows[-3:]]
    count = len(values)
    middle, mean = (count - 1) / 2, sum(values) / count
    squares = sum((i - middle) ** 2 for i in range(count))
    slope = sum((i - middle) * (v - mean) for i, v in enumerate(values)) / squares
    noise = math.sqrt(
        sum((v - mean - slope * (i - middle)) ** 2 for i, v in enumerate(values)) / max(1, count - 2)
    )
    rise = slope * (count - 1)
    return "still improving" if rise > max(2 * noise, 0.01 * mean) else "flat"
