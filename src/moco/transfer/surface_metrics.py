"""DensePose average precision: geodesic point similarity in the place of the overlap of boxes.

Source: Güler et al. 2018, Section 4: of each annotated point the geodesic distance on the body between
its true and its predicted place, exp(−d² / 2κ²), averaged over the points of a person.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moco.transfer.densepose import Surface
from moco.transfer.example import Detections, Example
from moco.transfer.surface import read_points

THRESHOLDS = tuple(threshold / 100 for threshold in range(50, 100, 5))
_MOST = 20  # detections per image that count
_IGNORED_SHARE = 0.7  # of a detection's box inside people without points, from which it does not count
_BODY_PART = (0, 1, 1, 2, 2, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7, 8, 8)
_NORMAL_DISTANCE = (0.0, 0.351, 0.107, 0.126, 0.237, 0.173, 0.142, 0.128, 0.150)
"""κ of each body part, in metres."""


@dataclass(frozen=True)
class Body:
    """A body's surface as points with distances between them.

    Attributes:
        parts, u, v: of each point.
        place: for each point its number in the table of distances.
        distances: between numbers i > j at i (i − 1) / 2 + j, in metres.
    """

    parts: np.ndarray
    u: np.ndarray
    v: np.ndarray
    place: np.ndarray
    distances: np.ndarray

    @staticmethod
    def read(folder: str | Path) -> "Body":
        """From `body.npz` (parts, u, v, place, from 0) and `distances.npy` (see docs/transfer.md).

        Raises:
            FileNotFoundError: naming the file that is wanted.
        """
        paths = [Path(folder) / name for name in ("body.npz", "distances.npy")]
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(f"there is no {path}; docs/transfer.md says how it is made")
        content = np.load(paths[0])
        parts, u, v, place = (content[name] for name in ("parts", "u", "v", "place"))
        return Body(parts, u, v, place, np.load(paths[1], mmap_mode="r"))

    def nearest(self, parts: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """For each part, U, V the number of the nearest point of that part; −1 for part 0."""
        result = np.full(len(parts), -1)
        for part in np.unique(parts[parts > 0]).tolist():
            own, rows = np.flatnonzero(self.parts == part), np.flatnonzero(parts == part)
            squared = (self.u[own][None] - u[rows, None]) ** 2 + (self.v[own][None] - v[rows, None]) ** 2
            result[rows] = own[squared.argmin(1)]
        return result

    def between(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Geodesic distances of pairs of points; infinite where one is −1."""
        result = np.full(len(first), np.inf)
        known = (first >= 0) & (second >= 0)
        i, j = self.place[first[known]].astype(np.int64), self.place[second[known]].astype(np.int64)
        high, low = np.maximum(i, j), np.minimum(i, j)
        index = high * (high - 1) // 2 + low
        found = np.zeros(len(i))
        different = high > low
        found[different] = self.distances[index[different]]
        result[known] = found
        return result


def similarity(body: Body, surface: dict[str, Any], box: np.ndarray, found: Surface) -> float:
    """Geodesic point similarity of one person and one detection, in [0, 1].

    Args:
        body: the surface.
        surface: the person's DensePose annotation.
        box: of the person, left, top, right, bottom.
        found: of the detection.
    """
    points = read_points({**surface, "dp_masks": []})
    assert points is not None
    places = points.places.numpy()
    x = np.floor(box[0] + places[:, 0] * (box[2] - box[0])).astype(int) - found.left
    y = np.floor(box[1] + places[:, 1] * (box[3] - box[1])).astype(int) - found.top
    height, width = found.parts.shape
    inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    x, y = x.clip(0, width - 1), y.clip(0, height - 1)
    predicted = np.where(inside, found.parts.numpy()[y, x], 0)
    u, v = found.uv.numpy()[:, y, x]
    parts = points.parts.numpy()
    true = body.nearest(parts, *points.uv.numpy().T)
    distance = body.between(true, body.nearest(predicted, u, v))
    scale = np.array(_NORMAL_DISTANCE)[np.array(_BODY_PART)[parts]]
    return float(np.exp(-(distance**2) / (2 * scale**2)).mean()) if len(parts) else 0.0


@dataclass
class Judged:
    """Detections with what they hit at each threshold, for average precision with similarity in place of
    overlap."""

    scores: list[float] = field(default_factory=list)
    right: list[np.ndarray] = field(default_factory=list)
    people: int = 0

    def take(self, other: "Judged") -> None:
        """Take in what was judged elsewhere."""
        self.scores += other.scores
        self.right += other.right
        self.people += other.people

    def result(self) -> dict[str, float]:
        """Percentages: "AP", "AP50", "AP75", as COCO averages precision over 101 recalls."""
        if not self.people or not self.scores:
            return {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}
        hits = np.stack(self.right)[np.argsort(-np.array(self.scores), kind="stable")]
        values = 100 * np.array([_precision(column, self.people) for column in hits.T])
        return {
            "AP": float(values.mean()),
            "AP50": float(values[0]),
            "AP75": float(values[THRESHOLDS.index(0.75)]),
        }


@dataclass
class Bodies:
    """Takes in images one by one.

    *Deviation:* people without points are regions in which detections do not count, as in the owners'
    evaluation, but by the share of the box alone.
    """

    body: Body
    judged: Judged = field(default_factory=Judged)

    @staticmethod
    def read(folder: str | Path) -> "Bodies":
        """With the surface in a folder; see `Body.read`."""
        return Bodies(Body.read(folder))

    def add(self, example: Example, found: Detections) -> None:
        """Compare the surfaces found in one image with its people, best detections first."""
        assert example.objects is not None
        objects = example.objects
        annotated = [n for n, surface in enumerate(objects.surfaces) if surface is not None]
        self.judged.people += len(annotated)
        rows = np.argsort(-found.scores.numpy(), kind="stable")[:_MOST]
        boxes = objects.boxes.numpy().astype(np.float64)
        table = np.array(
            [
                [similarity(self.body, objects.surfaces[n], boxes[n], found.surfaces[row]) for n in annotated]
                for row in rows
            ]
        ).reshape(len(rows), len(annotated))
        unlabelled = np.delete(boxes, annotated, axis=0)
        taken = np.zeros((len(THRESHOLDS), len(annotated)), dtype=bool)
        for place, row in enumerate(rows):
            hopeless = table[place].max(initial=0.0) < THRESHOLDS[0]
            if hopeless and _ignored(found.boxes[row].numpy(), unlabelled):
                continue
            hits = np.zeros(len(THRESHOLDS), dtype=bool)
            for number, threshold in enumerate(THRESHOLDS):
                free = np.where(taken[number], -1.0, table[place])
                if free.size and free.max() >= threshold:
                    taken[number, int(free.argmax())] = hits[number] = True
            self.judged.scores.append(float(found.scores[row]))
            self.judged.right.append(hits)


def _ignored(box: np.ndarray, people: np.ndarray) -> bool:
    """Whether most of a box lies inside people without points."""
    if not len(people):
        return False
    left, top, right, bottom = np.round(box).astype(int)
    covered = np.zeros((max(bottom - top, 1), max(right - left, 1)), dtype=bool)
    for x0, y0, x1, y1 in np.round(people).astype(int):
        covered[max(y0 - top, 0) : max(y1 - top, 0), max(x0 - left, 0) : max(x1 - left, 0)] = True
    return bool(covered.mean() >= _IGNORED_SHARE)


def _precision(hits: np.ndarray, objects: int) -> float:
    right = hits.cumsum()
    recall, precision = right / objects, right / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
    return float(np.where(places < len(envelope), envelope[places.clip(max=len(envelope) - 1)], 0).mean())
