"""A classifier for few labels, with honest confidences, and which images to label next."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from moco import chance
from moco.evaluate.logistic import (
    PENALTIES,
    centre_and_scale,
    check_finite,
    logistic_regression,
    scores,
    stratified_folds,
)

_CANDIDATES, _REPRESENTED = 2000, 5000
_TEMPERATURES = torch.logspace(-1.5, 1.5, 301, dtype=torch.float64)


@dataclass(frozen=True)
class Head:
    """Logistic regression on features, with the temperature that makes its confidences true.

    Attributes:
        weights: (classes, D + 1), the bias last, for features less `centre` over `scale`.
        centre, scale: (D,) and a number.
        penalty: chosen by cross-validation; the middle one where a class has a single image or group.
        temperature: divides the logits; fitted to the held-out ones, 1 where there are none.
        right: for each labelled image whether the classifier that had not seen it named its class;
            None where a class has a single image or group.
    """

    weights: Tensor
    centre: Tensor
    scale: Tensor
    penalty: float
    temperature: float
    right: Tensor | None

    def probabilities(self, features: Float[Tensor, "M D"]) -> Float[Tensor, "M classes"]:
        """Calibrated probabilities of each class."""
        standard = (features - self.centre) / self.scale
        logits = standard @ self.weights[:, :-1].T + self.weights[:, -1]
        return (logits / self.temperature).softmax(1)


def fit_head(
    features: Float[Tensor, "M D"],
    labels: Int[Tensor, " M"],
    classes: int,
    *,
    groups: Int[Tensor, " M"] | None = None,
    penalties: tuple[float, ...] = PENALTIES,
) -> Head:
    """Fit a classifier to few labelled images.

    Cross-validation (at most five folds, every class in each) chooses the penalty by the mean log loss
    at its own best temperature, and that temperature is kept: the confidences of images that no fold
    had seen are what they claim to be.

    Args:
        features: of the labelled images.
        labels: their classes, from 0.
        classes: how many there are; each has an image.
        groups: of the labelled images, such as patients: none is in two folds.
        penalties: to choose from.

    Raises:
        ValueError: if there are fewer than two classes, a class without an image, or features that are
            not finite.

    Source: temperature scaling, Guo et al. 2017, "On Calibration of Modern Neural Networks", Section 4.2,
    fitted to held-out logits of all folds in place of a validation set.
    """
    check_finite(features)
    counts = torch.bincount(labels, minlength=classes)
    if classes < 2:
        raise ValueError(f"a classifier needs at least 2 classes, got {classes}")
    if not bool((counts > 0).all()):
        raise ValueError(f"class {int(counts.argmin())} has no labelled image")
    centre, scale = centre_and_scale(features)
    standard = ((features - centre) / scale)[None]
    folds = stratified_folds(labels[None], classes, None if groups is None else groups[None])
    penalty, temperature, right = penalties[len(penalties) // 2], 1.0, None
    if int(folds.max()) > 0:
        logits = _held_out(standard, labels[None], classes, penalties, folds)
        losses, best = zip(*(_calibrate(each, labels) for each in logits.unbind(1)), strict=True)
        choice = int(torch.tensor(losses).argmin())
        penalty, temperature = penalties[choice], best[choice]
        right = logits[:, choice].argmax(1) == labels
    weights = logistic_regression(standard, labels[None], classes, standard.new_tensor([[penalty]]))[0, 0]
    return Head(weights, centre, scale, penalty, temperature, right)


def _held_out(features, labels, classes, penalties, folds) -> Float[Tensor, "M K classes"]:
    """Logits of each image under the classifier of its fold, for each penalty."""
    count = int(folds.max()) + 1
    kept = (folds[:, None] != torch.arange(count)[:, None]).to(features.dtype)  # (1, folds, M)
    shares = kept.repeat_interleave(len(penalties), 1)
    penalty = features.new_tensor(penalties).repeat(1, count)
    weights = logistic_regression(features, labels, classes, penalty, shares=shares)
    every = scores(weights, features)[0].view(labels.shape[1], count, len(penalties), classes)
    return every[torch.arange(labels.shape[1]), folds[0]]


def _calibrate(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """The least mean log loss over temperatures, and the temperature it has."""
    losses = torch.stack(
        [F.cross_entropy(logits.double() / t, labels) for t in _TEMPERATURES.to(logits.device)]
    )
    best = int(losses.argmin())
    return losses[best].item(), _TEMPERATURES[best].item()


def label_next(
    features: Float[Tensor, "M D"],
    labelled: Int[Tensor, " L"],
    count: int,
    *,
    seed: int = 0,
) -> Int[Tensor, " count"]:
    """The images whose labels would tell most about all images, best first.

    Each next image is the one that brings all images closest to a labelled one: it adds most to the sum
    over images of their similarity (cosine of centred features, at least 0) to the most similar image
    that is labelled or chosen. Of many images a keyed sample is looked at.

    Args:
        features: of all images.
        labelled: which of them have a label.
        count: how many to choose.
        seed: of the sample.

    Raises:
        ValueError: if fewer images than asked for have no label, or features are not finite.

    Source: facility location, whose greedy maximum is within 1 - 1/e of the best (Nemhauser, Wolsey and
    Fisher 1978); Wei, Iyer and Bilmes 2015, "Submodularity in Data Subset Selection and Active Learning".
    """
    check_finite(features)
    free = torch.ones(len(features), dtype=torch.bool)
    free[labelled] = False
    candidates = free.nonzero()[:, 0]
    if not 1 <= count <= len(candidates):
        raise ValueError(f"{count} images to label were asked for, but {len(candidates)} have no label")
    candidates = _sample(candidates, max(_CANDIDATES, 4 * count), seed, "label candidates")
    represented = _sample(torch.arange(len(features)), _REPRESENTED, seed, "label represented")
    unit = F.normalize(features - features.mean(0), dim=1)
    similarity = unit[candidates] @ unit[represented].T
    covered = unit.new_zeros(len(represented))
    for part in labelled.split(_CANDIDATES) if len(labelled) else ():
        covered = torch.maximum(covered, (unit[represented] @ unit[part].T).amax(1))
    chosen: list[int] = []
    for _ in range(count):
        gain = (similarity - covered).clamp_(min=0).sum(1)
        gain[chosen] = -1.0
        chosen.append(int(gain.argmax()))
        covered = torch.maximum(covered, similarity[chosen[-1]])
    return candidates[chosen]


def _sample(numbers: Tensor, most: int, seed: int, purpose: str) -> Tensor:
    """At most so many of the numbers, a keyed draw."""
    if len(numbers) <= most:
        return numbers
    return numbers[torch.from_numpy(chance.permute(np.arange(most), len(numbers), seed, purpose, step=0))]
