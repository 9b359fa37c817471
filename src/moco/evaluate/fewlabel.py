"""How good features are when labels are few: repeated splits, means with intervals, and worth in labels."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moco import chance
from moco.evaluate.logistic import fit_predict

_BYTES = 256 * 2**20  # of stacked features held at once


@dataclass(frozen=True)
class Amount:
    """How many images get a label: so many of each class, or a share of all.

    Raises:
        ValueError: if it is not a whole number of images above 0, or a share in (0, 1].
    """

    per_class: int | None = None
    share: float | None = None

    def __post_init__(self):
        if (self.per_class is None) == (self.share is None):
            raise ValueError("give a number of labels per class or a share of all images, and not both")
        if self.per_class is not None and self.per_class < 1:
            raise ValueError(f"labels per class must be at least 1, got {self.per_class}")
        if self.share is not None and not 0 < self.share <= 1:
            raise ValueError(f"the share of labelled images must be in (0, 1], got {self.share}")

    def __str__(self) -> str:
        return f"{self.per_class} per class" if self.share is None else f"{100 * self.share:g} %"


AMOUNTS = (*(Amount(per_class=n) for n in (1, 5, 10, 50)), Amount(share=0.01), Amount(share=0.1))


def split(labels: Int[Tensor, " M"], amount: Amount, repeat: int, *, seed: int = 0) -> Int[Tensor, " n"]:
    """The indices of the labelled images of one split, sorted by class.

    Every class gives its share: `per_class` images, or the rounded share of its images and at least one.

    Args:
        labels: classes of all images one may label.
        amount: how many of them.
        repeat: which split; each is a keyed draw of its own.
        seed: of all splits.

    Raises:
        ValueError: if a class has fewer images than asked for.
    """
    chosen = []
    for number in labels.unique().tolist():
        members = (labels == number).nonzero()[:, 0]
        count = amount.per_class
        if count is None:
            assert amount.share is not None
            count = max(1, round(amount.share * len(members)))
        if count > len(members):
            raise ValueError(
                f"{count} labels per class were asked for, but class {number} has {len(members)} images"
            )
        place = chance.permute(np.arange(count), len(members), seed, f"few labels {number}", step=repeat)
        chosen.append(members[torch.from_numpy(place)])
    return torch.cat(chosen)


class Interval(NamedTuple):
    """A mean with its 95 % interval, and the values it was taken over."""

    mean: float
    low: float
    high: float
    values: tuple[float, ...]

    def __str__(self) -> str:
        above, below = self.high - self.mean, self.mean - self.low
        if math.isinf(above) or abs(above - below) < 0.05:
            return f"{self.mean:.1f} ± {above:.1f}"
        return f"{self.mean:.1f} ({self.low:.1f} to {self.high:.1f})"


def interval(values: Sequence[float]) -> Interval:
    """Student's 95 % interval of a mean: mean ± t s / √n; one value has an interval without bounds.

    Raises:
        ValueError: if there is no value.
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    count, mean = len(values), sum(values) / len(values)
    if count == 1:
        return Interval(mean, -math.inf, math.inf, tuple(values))
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1))
    half = student(count - 1) * spread / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, tuple(values))


def proportion(right: int, count: int) -> Interval:
    """Percent right of so many, with Wilson's 95 % interval, which never leaves 0 to 100.

    Raises:
        ValueError: if there is nothing to count.
    """
    if not 0 <= right <= count or not count:
        raise ValueError(f"a proportion needs 0 <= right <= count, count > 0, got {right} of {count}")
    z, share = NORMAL, right / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    low, high = (0.0 if right == 0 else centre - half), (1.0 if right == count else centre + half)
    return Interval(100 * share, 100 * low, 100 * high, ())


NORMAL = 1.959964
"""The 97.5 % quantile of the normal distribution."""
_STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t: 12.706 at 1 degree of freedom, 1.960 at very many.

    Above ten degrees it is expanded about the normal quantile (Abramowitz and Stegun, 26.7.5).
    """
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z = NORMAL
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


class Point(NamedTuple):
    """Accuracy at one amount of labels.

    Attributes:
        amount: how many labels, in words.
        labels: labelled images in all.
        top1: percent of test images, over the splits.
        right: (S, Q) which test images were right in which split.
    """

    amount: str
    labels: int
    top1: Interval
    right: Bool[Tensor, "S Q"]

    def row(self) -> dict[str, Any]:
        """For JSON, which knows no infinity: an interval without bounds has null for them."""
        top1 = {k: None if v in (math.inf, -math.inf) else v for k, v in self.top1._asdict().items()}
        return {"amount": self.amount, "labels": self.labels, **top1}


Learner = Callable[[Int[Tensor, "S n"]], Int[Tensor, "S Q"]]
"""Labelled images of S splits, by index, to predicted classes of the test images."""


def few_label_curve(
    learner: Learner,
    labels: Int[Tensor, " M"],
    test_labels: Int[Tensor, " Q"],
    *,
    amounts: Sequence[Amount] = AMOUNTS,
    repeats: int = 10,
    seed: int = 0,
) -> list[Point]:
    """Test accuracy at each `comparable` amount of labels, over repeated splits that every learner shares.

    Args:
        learner: `on_features`, or anything of that form.
        labels: classes of the images one may label.
        test_labels: classes of the test images.
        amounts: how many labels.
        repeats: splits of each amount.
        seed: of the splits.

    Raises:
        ValueError: if no amount is left.
    """
    curve = []
    for count, amount in sorted(comparable(labels, amounts).items()):
        splits = torch.stack([split(labels, amount, repeat, seed=seed) for repeat in range(repeats)])
        right = learner(splits) == test_labels
        top1 = interval((100 * right.double().mean(1)).tolist())
        curve.append(Point(str(amount), count, top1, right))
    return curve


def comparable(
    labels: Int[Tensor, " M"], amounts: Sequence[Amount], left_out: list[str] | None = None
) -> dict[int, Amount]:
    """The amounts that splits of these images can compare, by the labels they come to.

    Left out are those that a class has too few images for, that come to as many labels as another, or that
    take more than half of the images: splits of nearly the same images agree without telling anything.

    Args:
        labels: classes of the images one may label.
        amounts: how many labels.
        left_out: a sentence for each amount that is left out is added to it.

    Raises:
        ValueError: if no amount is left.
    """
    said = [] if left_out is None else left_out
    fewest = int(torch.bincount(labels)[labels.unique()].min())
    found: dict[int, Amount] = {}
    for amount in amounts:
        if amount.per_class is not None and amount.per_class > fewest:
            said.append(f"{amount} is left out: a class has only {fewest} images")
            continue
        count = len(split(labels, amount, 0))
        if count in found:
            said.append(f"{amount} is left out: it comes to {count:,} labels, like {found[count]}")
        elif 2 * count > len(labels):
            half = f"more than half of the {len(labels):,} images"
            said.append(f"{amount} is left out: its {count:,} labels are {half}")
        else:
            found[count] = amount
    if not found:
        few = f"{len(labels)} labelled images are too few to compare amounts of labels"
        raise ValueError(f"{few}: every split would take more than half of them")
    return found


def on_features(
    features: Float[Tensor, "M D"],
    labels: Int[Tensor, " M"],
    test_features: Float[Tensor, "Q D"],
    groups: Int[Tensor, " M"] | None = None,
) -> Learner:
    """Logistic regression on frozen features; its penalty is chosen within the labelled images."""
    classes = int(labels.max()) + 1

    def learn(splits: Tensor) -> Tensor:
        stack = max(1, _BYTES // (splits.shape[1] * features.shape[1] * features.element_size()))
        return torch.cat(
            [
                fit_predict(
                    features[part],
                    labels[part],
                    classes,
                    test_features,
                    groups=None if groups is None else groups[part],
                )
                for part in splits.split(stack)
            ]
        )

    return learn


class Worth(NamedTuple):
    """How many labels of the reference equal `labels` of ours.

    Attributes:
        amount: ours, in words.
        labels: ours, images.
        equals: labels the reference needs for the same accuracy; its largest amount where even that
            falls short.
        at_least: the reference never got there, so `equals` is a lower bound.
    """

    amount: str
    labels: int
    equals: float
    at_least: bool

    @property
    def factor(self) -> float:
        """equals / labels."""
        return self.equals / self.labels


def worth(ours: Sequence[Point], reference: Sequence[Point]) -> list[Worth]:
    """Read off how many labels of the reference each of our points is worth.

    The reference's accuracy is interpolated linearly in the logarithm of the labels. Points below its
    first amount are left out: how few labels it would need is not known.
    """
    counts = [math.log(point.labels) for point in reference]
    means = list(np.maximum.accumulate([point.top1.mean for point in reference]))
    result = []
    for point in ours:
        target = point.top1.mean
        if target < means[0]:
            continue
        if target > means[-1]:
            result.append(Worth(point.amount, point.labels, math.exp(counts[-1]), at_least=True))
            continue
        equals = math.exp(float(np.interp(target, means, counts)))
        result.append(Worth(point.amount, point.labels, equals, at_least=False))
    return result
