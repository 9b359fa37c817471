"""Did pre-training help? One sentence and the evidence for it, from few-label curves on shared splits."""

import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from moco import chance
from moco.evaluate.fewlabel import NORMAL, Interval, Point, Worth, interval, worth

Outcome = Literal["it helped", "it depends", "no difference shown", "it did not help"]
_RESAMPLES = 1000


class Contender(NamedTuple):
    """Something to start from, and how good it is at each amount of labels."""

    name: str
    curve: list[Point]


class Verdict(NamedTuple):
    """The answer.

    Attributes:
        outcome: in three words.
        sentence: for a person who will act on it.
        evidence: the comparisons behind it, one sentence each.
    """

    outcome: Outcome
    sentence: str
    evidence: list[str]


def best(contenders: Sequence[Contender]) -> Contender:
    """The one with the highest mean accuracy over the amounts of labels they have in common.

    Raises:
        ValueError: if there is none, or none in common.
    """
    if not contenders:
        raise ValueError("a verdict needs something to compare with")
    common = set.intersection(*({point.labels for point in c.curve} for c in contenders))
    if not common:
        names = " and ".join(c.name for c in contenders)
        raise ValueError(f"{names} were not measured with the same amounts of labels")
    return max(contenders, key=lambda c: statistics.fmean(p.top1.mean for p in c.curve if p.labels in common))


def difference(ours: Point, other: Point) -> Interval:
    """Our accuracy minus the other's, in points, paired over splits and test images.

    Its interval is for other labelled images and other test images: Student's over the splits, and the
    normal one over the images, added as independent errors are.
    """
    count = min(len(ours.right), len(other.right))
    gaps = 100 * (ours.right[:count].double() - other.right[:count].double())
    splits = interval(gaps.mean(1).tolist())
    images = NORMAL * gaps.mean(0).std().item() / math.sqrt(gaps.shape[1]) if gaps.shape[1] > 1 else math.inf
    half = math.hypot(splits.high - splits.mean, images)
    return Interval(splits.mean, splits.mean - half, splits.mean + half, splits.values)


def judge(
    ours: Sequence[Contender],
    without: Sequence[Contender],
    others: Sequence[Contender] = (),
    *,
    seed: int = 0,
) -> Verdict:
    """Compare a pre-trained backbone with what one could do without pre-training on these images.

    A difference counts where its 95 % interval (`difference`) leaves out zero. The way to use the backbone
    that is best on average is compared, at each amount of labels, with whatever is best there without it.

    Args:
        ours: ways to use the pre-trained backbone, such as frozen and fine-tuned.
        without: untrained network, raw pixels, training from scratch.
        others: weights from elsewhere, which one could use instead.
        seed: of the resampling behind the interval of the factor.

    Raises:
        ValueError: if there is nothing to compare with, or no amount of labels in common.
    """
    chosen, reference = best(ours), envelope(without)
    evidence = []
    for other in (*without, *others):
        for mine, theirs in _shared(chosen, other):
            gap = difference(mine, theirs)
            evidence.append(
                f"{mine.amount} ({mine.labels:,} labels): {mine.top1.mean:.1f} % against "
                f"{theirs.top1.mean:.1f} % with {other.name}, {gap.mean:+.1f} points "
                f"(95 % interval {gap.low:+.1f} to {gap.high:+.1f})"
            )
    better, worse, pairs = _compare(chosen, reference)
    if better and worse:
        outcome: Outcome = "it depends"
        sentence = (
            f"It depends on the labels: with {better[0][0].amount} this backbone is better than "
            f"{_at(without, better[0][1])}, with {worse[0][0].amount} worse than "
            f"{_at(without, worse[0][1])}."
        )
    elif better:
        outcome, sentence = "it helped", _helped(chosen, reference, better, seed)
    elif worse:
        outcome = "it did not help"
        mine, theirs = worse[-1]
        sentence = (
            f"It did not help: with {mine.amount} it reaches {mine.top1.mean:.1f} % and "
            f"{_at(without, theirs)} {theirs.top1.mean:.1f} %; use {_at(without, theirs)}, "
            "or pre-train longer or on more images."
        )
    else:
        outcome = "no difference shown"
        gaps = [difference(*pair) for pair in pairs]
        sentence = (
            f"No difference shown: the gap to {reference.name} lies between "
            f"{min(g.low for g in gaps):+.1f} and {max(g.high for g in gaps):+.1f} points at every amount of "
            "labels tried; more test images, more repeats or longer pre-training would be needed to see one."
        )
    for other in others:
        theirs_better, theirs_worse, _ = _compare(other, chosen)
        if theirs_better and not theirs_worse:
            sentence += f" But {other.name} is better: use that, or begin from it."
    return Verdict(outcome, sentence, evidence)


def envelope(contenders: Sequence[Contender]) -> Contender:
    """At each amount of labels whichever is best there.

    Raises:
        ValueError: if there is none.
    """
    if not contenders:
        raise ValueError("a verdict needs something to compare with")
    points: dict[int, Point] = {}
    for contender in contenders:
        for point in contender.curve:
            if point.labels not in points or point.top1.mean > points[point.labels].top1.mean:
                points[point.labels] = point
    curve = [points[labels] for labels in sorted(points)]
    names = dict.fromkeys(_at(contenders, point) for point in curve)
    return Contender(" or ".join(names), curve)


def _at(contenders: Sequence[Contender], point: Point) -> str:
    """Whose point it is."""
    return next(c.name for c in contenders if any(p is point for p in c.curve))


def _shared(ours: Contender, other: Contender) -> list[tuple[Point, Point]]:
    theirs = {point.labels: point for point in other.curve}
    return [(point, theirs[point.labels]) for point in ours.curve if point.labels in theirs]


def _compare(ours: Contender, other: Contender):
    """Amounts at which we are better, those at which we are worse, and all that were compared."""
    pairs = _shared(ours, other)
    if not pairs:
        raise ValueError(f"{ours.name} and {other.name} were not measured with the same amounts of labels")
    better = [pair for pair in pairs if difference(*pair).low > 0]
    worse = [pair for pair in pairs if difference(*pair).high < 0]
    return better, worse, pairs


def _helped(ours: Contender, reference: Contender, better: list[tuple[Point, Point]], seed: int) -> str:
    """What the gain is worth in labels, at the amount whose factor is the middle one."""
    known = worth([mine for mine, _ in better], reference.curve)
    if not known:
        mine, theirs = better[0]
        return (
            f"It helped: with {mine.amount} this backbone reaches {mine.top1.mean:.1f} %, and "
            f"{theirs.top1.mean:.1f} % is the best there is without it ({reference.name})."
        )
    bounded = sorted((w for w in known if not w.at_least), key=lambda w: w.factor)
    chosen = bounded[(len(bounded) - 1) // 2] if bounded else max(known, key=lambda w: w.factor)
    start = "It helped: pre-training on these images is worth "
    if chosen.at_least:
        return (
            f"{start}more than {chosen.factor:.1f} times the labels: with {chosen.labels:,} "
            f"({chosen.amount}) this backbone is better than anything without it with {chosen.equals:,.0f}, "
            f"the most that was tried ({reference.name})."
        )
    return (
        f"{start}{chosen.factor:.1f} times the labels {factor_words(ours, reference, chosen, seed=seed)}: "
        f"{chosen.labels:,} ({chosen.amount}) with this backbone do what "
        f"{chosen.equals:,.0f} do without it, at their best ({reference.name})."
    )


def factor_words(ours: Contender, reference: Contender, at: Worth, *, seed: int = 0) -> str:
    """The interval of `factor_interval` in words, with the reference's last amount where it goes beyond."""
    low, high = factor_interval(ours, reference, at, seed=seed)
    least, most = (extreme(p.labels for p in reference.curve) / at.labels for extreme in (min, max))
    begins = f"from less than {least:.1f}" if low == -math.inf else f"{low:.1f}"
    ends = f"more than {most:.1f}" if high == math.inf else f"{high:.1f}"
    return f"(95 % interval {begins} to {ends})"


def factor_interval(
    ours: Contender, reference: Contender, at: Worth, *, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of a worth factor, resampling splits and test images of both curves together.

    Returns:
        Its ends; infinite where more than 2.5 % of the resamples lie beyond the reference's amounts.
    """
    (mine,) = (point for point in ours.curve if point.labels == at.labels)
    points = (mine, *reference.curve)
    right = [point.right.float() for point in points]
    splits, images = max(len(part) for part in right), right[0].shape[1]
    generator = chance.generator(seed, "worth")
    factors = []
    for _ in range(_RESAMPLES):
        places = torch.rand(splits, generator=generator)
        weights = torch.randint(images, (images,), generator=generator).bincount(minlength=images).float()
        drawn = [_resample(*of, places, weights) for of in zip(points, right, strict=True)]
        found = worth(drawn[:1], drawn[1:])
        bound = -math.inf if not found else math.inf if found[0].at_least else found[0].factor
        factors.append(bound)
    factors.sort()
    return factors[int(0.025 * len(factors))], factors[int(0.975 * (len(factors) - 1))]


def _resample(point: Point, right: Tensor, places: Tensor, weights: Tensor) -> Point:
    """A point over splits and test images drawn anew, the same ones in every curve that has as many splits.

    Args:
        point: what is drawn anew.
        right: (S, Q) its `right` in float32.
        places: (S or more,) where among the splits each draw falls, in [0, 1).
        weights: (Q,) how often each test image was drawn.
    """
    values = right @ weights * (100 / len(weights))
    mean = values[(places[: len(values)] * len(values)).long()].mean().item()
    return point._replace(top1=Interval(mean, mean, mean, ()))
