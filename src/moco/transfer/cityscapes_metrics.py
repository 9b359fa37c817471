"""Cityscapes average precision of instances, written from its owners' definition.

Source: Cordts et al. 2016, Section 4.3: AP is the mean over classes and over overlaps of masks from .50
to .95; instances under 100 pixels, and regions of a class that no instance is told apart in, count neither
as found nor as missed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from moco.transfer.cityscapes import EVALUATED, THINGS, instance_numbers
from moco.transfer.example import Detections, Example

THRESHOLDS = tuple(threshold / 100 for threshold in range(50, 100, 5))
SMALLEST = 100
"""Pixels an instance must have to count."""


@dataclass
class _Seen:
    """What was found of one class: scores and kinds of matches for each threshold, and objects missed."""

    scores: list[list[float]] = field(default_factory=lambda: [[] for _ in THRESHOLDS])
    right: list[list[bool]] = field(default_factory=lambda: [[] for _ in THRESHOLDS])
    missed: list[int] = field(default_factory=lambda: [0 for _ in THRESHOLDS])
    objects: int = 0


class Instances:
    """Takes in images one by one.

    Args:
        classes: names in label order, those of `moco.transfer.cityscapes.THINGS`.
    """

    def __init__(self, classes: Sequence[str]):
        self.classes = tuple(classes)
        self.seen = [_Seen() for _ in classes]

    def add(self, example: Example, found: Detections) -> None:
        """Compare the masks found in one image with its instance file."""
        assert example.instances is not None
        assert found.masks is not None
        numbers = instance_numbers(example.instances)
        kinds = np.where(numbers >= 1000, numbers // 1000, numbers)
        void = np.isin(kinds, list(EVALUATED), invert=True)  # 255 too, where tools write that
        masks = found.masks.numpy()
        for label, seen in enumerate(self.seen):
            identity = list(THINGS)[label]
            rows = (found.labels == label).nonzero().flatten().tolist()
            rows = sorted(
                (row for row in rows if masks[row].any()), key=lambda row: -float(found.scores[row])
            )
            groups = [numbers == n for n in np.unique(numbers[kinds == identity]).tolist()]
            counted = [bool(numbers[group][0] >= 1000 and group.sum() >= SMALLEST) for group in groups]
            scores = [float(found.scores[row]) for row in rows]
            self._compare(seen, [masks[row] for row in rows], scores, groups, counted, void)

    def take(self, other: "Instances") -> None:
        """Take in the images that another one took in."""
        for own, more in zip(self.seen, other.seen, strict=True):
            for place in range(len(THRESHOLDS)):
                own.scores[place] += more.scores[place]
                own.right[place] += more.right[place]
                own.missed[place] += more.missed[place]
            own.objects += more.objects

    def _compare(
        self,
        seen: _Seen,
        masks: list[np.ndarray],
        scores: list[float],
        groups: list[np.ndarray],
        counted: list[bool],
        void: np.ndarray,
    ) -> None:
        shared = np.array([[np.logical_and(m, g).sum() for g in groups] for m in masks], dtype=np.float64)
        shared = shared.reshape(len(masks), len(groups))
        sizes = np.array([m.sum() for m in masks], dtype=np.float64)
        areas = np.array([g.sum() for g in groups], dtype=np.float64)
        overlap = shared / np.maximum(sizes[:, None] + areas[None] - shared, 1)
        ignorable = np.array([np.logical_and(m, void).sum() for m in masks], dtype=np.float64)
        ignorable += shared[:, [not c for c in counted]].sum(1) if groups else 0
        seen.objects += sum(counted)
        for place, threshold in enumerate(THRESHOLDS):
            used: set[int] = set()
            for group in (g for g, counts in enumerate(counted) if counts):
                hits = [m for m in range(len(masks)) if overlap[m, group] > threshold]
                if not hits:
                    seen.missed[place] += 1
                    continue
                used.update(hits)
                best = max(hits, key=lambda m: scores[m])
                for m in hits:  # a second mask on the same instance is wrong
                    seen.scores[place].append(scores[m])
                    seen.right[place].append(m == best)
            for m in set(range(len(masks))) - used:
                if ignorable[m] / sizes[m] <= threshold:
                    seen.scores[place].append(scores[m])
                    seen.right[place].append(False)

    def result(self) -> dict[str, float]:
        """Percentages: "AP", "AP50", and "AP/CLASS"; classes without an instance are left out."""
        table = {
            name: [
                _area(seen.scores[place], seen.right[place], seen.missed[place])
                for place in range(len(THRESHOLDS))
            ]
            for name, seen in zip(self.classes, self.seen, strict=True)
            if seen.objects
        }
        if not table:
            return {"AP": 0.0, "AP50": 0.0}
        values = 100 * np.array(list(table.values()))
        result = {"AP": float(values.mean()), "AP50": float(values[:, 0].mean())}
        result["AP75"] = float(values[:, THRESHOLDS.index(0.75)].mean())
        return result | {f"AP/{name}": 100 * float(np.mean(row)) for name, row in table.items()}


def _area(scores: list[float], right: list[bool], missed: int) -> float:
    """Area under precision over recall, each step weighed by half of both neighbours as its owners do."""
    if not scores:
        return 0.0
    order = np.argsort(np.array(scores), kind="stable")
    ranked, hits = np.array(scores)[order], np.array(right)[order]
    _, first = np.unique(ranked, return_index=True)
    below = np.concatenate([[0], np.cumsum(hits)])[first]  # right ones below each threshold
    true = hits.sum() - below
    false = len(ranked) - first - true
    precision = np.concatenate([true / (true + false), [1.0]])
    recall = np.concatenate([true / (hits.sum() + missed) if hits.sum() + missed else true * 0.0, [0.0]])
    padded = np.concatenate([recall[:1], recall, [0.0]])
    widths = np.convolve(padded, [-0.5, 0, 0.5], "valid")
    return float(np.dot(precision, widths))
