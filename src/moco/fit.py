"""From a few labelled images to a class for every image, and to those whose labels would help most."""

import csv
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moco.data.table import in_order, places, read_table
from moco.embeddings import Embeddings
from moco.evaluate.fewlabel import Interval, proportion
from moco.evaluate.labelling import Head, fit_head, label_next
from moco.files import write_atomically

_TO_LABEL = ["name", "label", "guess", "confidence"]
"""The columns of next.csv."""


@dataclass(frozen=True, repr=False)
class Fit:
    """What few labels say about all images.

    Attributes:
        classes: by name, in the order of the columns of `probabilities`.
        names: of all M images.
        labels: (M,) the class that was given, -1 where none was.
        probabilities: (M, classes), calibrated.
        next: images to label next, best first.
        head: the classifier.
    """

    classes: list[str]
    names: list[str]
    labels: Tensor
    probabilities: Tensor
    next: Tensor
    head: Head

    @property
    def accuracy(self) -> Interval | None:
        """Percent of the labelled images that a classifier named right without having seen them.

        None where a class has a single image, or where all its images are of one group.
        """
        if self.head.right is None:
            return None
        return proportion(int(self.head.right.sum()), len(self.head.right))

    def __repr__(self) -> str:
        given = int((self.labels >= 0).sum())
        about = "" if self.accuracy is None else f", about {self.accuracy} % right"
        return f"Fit({len(self.classes)} classes from {given:,} of {len(self.names):,} images{about})"


def read_labels(paths: Sequence[str | Path]) -> dict[str, str]:
    """The labels that CSV files with the columns name (or path) and label give, by image name.

    Rows without a label are passed over, so a list of images to label may come back half done. Columns may be
    parted by semicolons, and capitals in their names and spaces around these do not count.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a file is no table, a column is missing or there twice, or an image has two different
            labels.
    """
    labels: dict[str, str] = {}
    for path in map(Path, paths):
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        columns, rows = read_table(path, exact=True)
        found = places(columns, ("name", "path", "label"), path)
        key = found.get("name", found.get("path"))
        if key is None or "label" not in found:
            raise ValueError(
                f"{path} must have the columns name and label, got {', '.join(columns) or 'nothing'}"
            )
        for row in rows:
            name, label = ("".join(row[place : place + 1]) for place in (key, found["label"]))
            label = label.strip()
            if label and labels.setdefault(name, label) != label:
                raise ValueError(f"{path} calls {name} {label}, but it was {labels[name]} before")
    return labels


def classes_of(given: dict[str, str], names: Sequence[str]) -> list[str]:
    """The classes that labels speak of, in order.

    Args:
        given: labels by image name.
        names: of all images.

    Raises:
        ValueError: if a name is unknown, or there are fewer than two classes.
    """
    known = set(names)
    if unknown := [name for name in given if name not in known]:
        raise ValueError(
            f"{len(unknown)} of the {len(given)} labelled images are not among the {len(names):,} images, "
            f"such as {unknown[0]}; they are called like {names[0]}"
        )
    classes = in_order(given.values())
    if len(classes) < 2:
        raise ValueError(f"labels of at least 2 classes are needed, got {', '.join(classes) or 'none'}")
    return classes


def fit(bank: Embeddings, given: dict[str, str], *, count: int = 50, seed: int = 0) -> Fit:
    """Learn classes from the labels given, and give every image one.

    Args:
        bank: features of all images.
        given: labels by image name.
        count: how many images to propose for labelling; fewer where fewer have no label.
        seed: of the images looked at when there are very many.

    Raises:
        ValueError: see `classes_of`.
    """
    classes = classes_of(given, bank.names)
    place = {name: i for i, name in enumerate(bank.names)}
    labels = torch.full((len(bank.names),), -1)
    for name, label in given.items():
        labels[place[name]] = classes.index(label)
    known = (labels >= 0).nonzero()[:, 0]
    groups = None if bank.groups is None else bank.groups[known]
    head = fit_head(bank.features[known], labels[known], len(classes), groups=groups)
    probabilities = head.probabilities(bank.features)
    count = min(count, len(labels) - len(known))
    chosen = label_next(bank.features, known, count, seed=seed) if count else known[:0]
    return Fit(classes, bank.names, labels, probabilities, chosen, head)


def write(found: Fit, folder: Path) -> tuple[Path, Path]:
    """Write `predictions.csv`, one line per image, and `next.csv`, the images to label, whole, into a folder.

    The label column of `next.csv` is empty: fill it in and give the file to the next fit. One that holds
    labels already, or is not as it was written, is left alone, and the new list is `next-2.csv`, and so on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    confidence, best = (x.tolist() for x in found.probabilities.max(1))
    predictions, to_label = folder / "predictions.csv", _free(folder)
    given = found.labels.tolist()
    lines = [["name", "predicted", "confidence", "given"]]
    for name, guess, sure, label in zip(found.names, best, confidence, given, strict=True):
        lines.append([name, found.classes[guess], f"{sure:.4f}", found.classes[label] if label >= 0 else ""])
    _write_table(predictions, lines)
    asked = (
        [found.names[i], "", found.classes[best[i]], f"{confidence[i]:.4f}"] for i in found.next.tolist()
    )
    _write_table(to_label, [_TO_LABEL, *asked])
    return predictions, to_label


def _write_table(path: Path, lines: list[list[str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(lines)
    write_atomically(path, text.getvalue().encode(errors="surrogateescape"))


def _free(folder: Path) -> Path:
    """Where the images to label next are listed: over no file that somebody has filled in."""
    for number in itertools.count(1):
        path = folder / ("next.csv" if number == 1 else f"next-{number}.csv")
        if not path.exists():
            return path
        try:
            columns, rows = read_table(path, exact=True)
        except ValueError:
            continue
        as_written = columns == _TO_LABEL and all(len(row) == len(_TO_LABEL) for row in rows)
        if as_written and not any(row[1].strip() for row in rows):
            return path
    raise AssertionError
