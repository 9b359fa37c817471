"""VOC average precision as the paper's stack computes it.

Every overlap threshold from .50 to .95 has the average precision of the split's year, by 11 points up to
VOC 2009 and by area from 2010 on; boxes include their last pixel, and objects marked difficult count
neither as found nor as missed.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from moco.transfer.example import Detections, Examples

THRESHOLDS = tuple(threshold / 100 for threshold in range(50, 100, 5))
Area = Literal["11 points", "area"]


def area_of(split: str) -> Area:
    """The average precision of a split's year, such as of VOC2012:val; without a year that of VOC 2007."""
    year = re.fullmatch(r"VOC(\d{4})", split.partition(":")[0])
    return "area" if year and int(year[1]) >= 2010 else "11 points"


def average_precision(recall: np.ndarray, precision: np.ndarray, area: Area = "11 points") -> float:
    """Area under the curve of precision over recall.

    Args:
        recall, precision: after each detection, best first.
        area: "11 points" averages the best precision at recalls of 0, 0.1 ... 1 and above (VOC 2007);
            "area" is the whole area below the falling envelope (VOC 2010 and later).

    Source: Everingham et al. 2010, Section 4.2.
    """
    if area == "11 points":
        levels = np.arange(0.0, 1.1, 0.1)
        return float(sum(precision[recall >= level].max(initial=0.0) for level in levels) / 11)
    recall = np.concatenate([[0.0], recall, [1.0]])
    envelope = np.maximum.accumulate(np.concatenate([[0.0], precision, [0.0]])[::-1])[::-1]
    return float(((recall[1:] - recall[:-1]) * envelope[1:]).sum())


def evaluate(
    examples: Examples,
    found: Sequence[Detections],
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    area: Area = "11 points",
    rounded: bool = True,
) -> dict[str, float]:
    """Average precision in percent.

    Args:
        examples: the annotated images.
        found: detections in each of them.
        thresholds: overlaps from which a detection is right; .50 and .75 have names of their own.
        area: see `average_precision`.
        rounded: scores to 3 decimals and boxes to 1, as in the result files of the paper's stack.

    Returns:
        "AP" (mean over thresholds and classes), "AP50", "AP75", and "AP50/CLASS" for each class with
        objects. A perfect detector has 100, but for objects whose boxes rounding moves.
    """
    table: dict[float, list[float]] = {threshold: [] for threshold in thresholds}
    per_class = {}
    for label, name in enumerate(examples.classes):
        truth = {
            number: _truth(example.objects, label)
            for number, example in enumerate(examples.examples)
            if example.objects is not None
        }
        if not any((~difficult).sum() for _, difficult in truth.values()):
            continue
        images, scores, predicted = _predictions(found, label, rounded)
        order = np.argsort(-scores, kind="stable")
        for threshold in thresholds:
            precision = _precision(images[order], predicted[order], truth, threshold, area)
            table[threshold].append(100 * precision)
            if threshold == 0.5:
                per_class[f"AP50/{name}"] = 100 * precision
    means = {threshold: float(np.mean(values)) if values else 0.0 for threshold, values in table.items()}
    result = {"AP": float(np.mean(list(means.values())))}
    result |= {f"AP{round(100 * t)}": means[t] for t in (0.5, 0.75) if t in means}
    return result | per_class


def _truth(objects, label: int) -> tuple[np.ndarray, np.ndarray]:
    rows = objects.labels == label
    boxes = objects.boxes[rows].numpy().astype(np.float64)
    boxes[:, :2] += 1  # as the files have them: 1-based, the last pixel included
    return boxes, objects.difficult[rows].numpy()


def _predictions(
    found: Sequence[Detections], label: int, rounded: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    images, scores, boxes = [], [], []
    for number, one in enumerate(found):
        rows = one.labels == label
        images += [number] * int(rows.sum())
        scores.append(one.scores[rows].numpy().astype(np.float64))
        boxes.append(one.boxes[rows].numpy().astype(np.float64) + np.array([1, 1, 0, 0]))
    score, box = np.concatenate([*scores, np.zeros(0)]), np.concatenate([*boxes, np.zeros((0, 4))])
    return np.array(images, dtype=int), *((score.round(3), box.round(1)) if rounded else (score, box))


def _precision(
    images: np.ndarray,
    predicted: np.ndarray,
    truth: Mapping[int, tuple[np.ndarray, np.ndarray]],
    threshold: float,
    area: Area,
) -> float:
    taken = {number: np.zeros(len(difficult), dtype=bool) for number, (_, difficult) in truth.items()}
    right, wrong = np.zeros(len(images)), np.zeros(len(images))
    for row, (image, box) in enumerate(zip(images, predicted, strict=True)):
        boxes, difficult = truth[int(image)]
        overlap = _overlaps(box, boxes)
        best = int(overlap.argmax()) if len(overlap) else -1
        if best < 0 or overlap[best] <= threshold:
            wrong[row] = 1
        elif not difficult[best]:  # a difficult object is neither
            right[row], wrong[row] = ~taken[int(image)][best], taken[int(image)][best]
            taken[int(image)][best] = True
    objects = sum(int((~difficult).sum()) for _, difficult in truth.values())
    right, wrong = right.cumsum(), wrong.cumsum()
    precision = right / np.maximum(right + wrong, np.finfo(np.float64).eps)
    return average_precision(right / objects, precision, area)


def _overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    width = np.minimum(box[2], boxes[:, 2]) - np.maximum(box[0], boxes[:, 0]) + 1
    height = np.minimum(box[3], boxes[:, 3]) - np.maximum(box[1], boxes[:, 1]) + 1
    shared = width.clip(min=0) * height.clip(min=0)
    areas = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    return shared / ((box[2] - box[0] + 1) * (box[3] - box[1] + 1) + areas - shared)
