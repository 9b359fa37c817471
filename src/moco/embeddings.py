"""Features of many images as a table: computed in parts, written, read again, and searched."""

import csv
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moco.data.loader import plain_batches
from moco.data.source import ArraySource, Source
from moco.evaluate.features import extract
from moco.weights import Weights

LAYERS = ("trunk", "output")
_ROWS = 65_536  # features compared at once


@dataclass(frozen=True)
class Embeddings:
    """Features of M images.

    Attributes:
        names: what each image is called: its path below the folder, or its number in an array.
        labels: class of each image by name, "" where there is none.
        features: (M, D).
    """

    names: list[str]
    labels: list[str]
    features: Tensor

    def __repr__(self) -> str:
        return f"Embeddings({len(self.names):,} images, {self.features.shape[1]} features each)"


def embed(
    weights: Weights,
    source: Source,
    *,
    layer: str = "trunk",
    indices: Tensor | None = None,
    batch: int = 500,
    lost: list[str] | None = None,
) -> Iterator[Embeddings]:
    """Features of a source's images, part by part and in order; those that cannot be read are left out.

    Args:
        weights: whose encoder; it stays where it is.
        source: the images.
        layer: "trunk" (what is kept after pre-training) or "output" (the head's unit-length vectors).
        indices: which images; None takes all.
        batch: images per part.
        lost: the names of those left out are added to it.

    Raises:
        ValueError: if there is no such layer, or the images have another number of channels.
    """
    if layer not in LAYERS:
        raise ValueError(f"the layer must be one of {', '.join(LAYERS)}, got {layer!r}")
    if layer == "output" and not weights.has_head:
        raise ValueError(f"{weights.path} holds no head, so there is no output; take the trunk")
    if source.channels != weights.about["channels"]:
        raise ValueError(
            f"{source.name} has images of {source.channels} channels, {weights.path} was trained on "
            f"{weights.about['channels']}"
        )
    chosen = torch.arange(len(source)) if indices is None else indices
    device = next(weights.encoder.parameters()).device
    labels = image_labels(source)
    for part in chosen.split(batch):
        unreadable: set[int] = set()
        images = plain_batches(source, weights.views, part, batch=batch, device=device, unreadable=unreadable)
        features = getattr(extract(weights.encoder, images), layer)
        numbers = [i for place, i in enumerate(part.tolist()) if place not in unreadable]
        if lost is not None:
            lost += [image_name(source, int(part[place])) for place in sorted(unreadable)]
        yield Embeddings([image_name(source, i) for i in numbers], [labels[i] for i in numbers], features)


def image_name(source: Source, i: int) -> str:
    """What an image is called in tables: its path below the folder, or its number in an array."""
    return str(i) if isinstance(source, ArraySource) else source.sample_name(i)


def image_labels(source: Source) -> list[str]:
    """The class of each image by name, "" where there is none."""
    if source.labels is None:
        return [""] * len(source)
    names = dict(enumerate(source.classes))
    return ["" if label < 0 else names.get(label, str(label)) for label in source.labels.tolist()]


def joined(parts: Iterator[Embeddings]) -> Embeddings:
    """All parts as one."""
    whole = list(parts)
    names, labels = ([x for part in whole for x in getattr(part, kind)] for kind in ("names", "labels"))
    return Embeddings(names, labels, torch.cat([part.features for part in whole]))


def nearest(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most similar rows of the bank for each query: cosine similarities and row numbers, (Q, k).

    Args:
        queries, bank: features (Q, D) and (M, D) of any length; they are normalised here.
        k: 1 to M.

    Raises:
        ValueError: if k is out of range.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"k must be between 1 and the {len(bank)} images searched, got {k}")
    queries = F.normalize(queries, dim=1)
    best, rows = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)
    for start in range(0, len(bank), _ROWS):
        similarity = queries @ F.normalize(bank[start : start + _ROWS], dim=1).T
        top, index = similarity.topk(min(k, similarity.shape[1]), dim=1)
        best, rows = torch.cat([best, top], 1), torch.cat([rows, index + start], 1)
        best, order = best.topk(min(k, best.shape[1]), dim=1)
        rows = rows.gather(1, order)
    return best, rows


class Writer(ABC):
    """Writes embeddings part by part; the files appear whole at the end or not at all."""

    def __init__(self, path: Path, *others: Path):
        self.asides = {each: each.with_name(each.name + ".tmp") for each in (path, *others)}
        self.aside = self.asides[path]
        path.parent.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        for path, aside in self.asides.items():
            if kind is None:
                aside.replace(path)
            else:
                aside.unlink(missing_ok=True)

    @abstractmethod
    def write(self, part: Embeddings) -> None:
        """Append a part."""

    @abstractmethod
    def close(self) -> None:
        """Finish the file."""


class CsvWriter(Writer):
    """One line per image: name, label, and the features to nine digits, which is all float32 holds."""

    def __init__(self, path: Path, count: int):
        super().__init__(path)
        self.file = open(self.aside, "w", newline="", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
        self.lines = csv.writer(self.file)
        self.begun = False

    def write(self, part: Embeddings) -> None:
        if not self.begun:
            self.begun = True
            self.lines.writerow(["name", "label", *(f"f{i}" for i in range(part.features.shape[1]))])
        for name, label, row in zip(part.names, part.labels, part.features.tolist(), strict=True):
            self.lines.writerow([name, label, *(f"{value:.9g}" for value in row)])

    def close(self) -> None:
        self.file.close()


class NpyWriter(Writer):
    """A float32 array (M, D), and beside it a CSV with name and label of each row."""

    def __init__(self, path: Path, count: int):
        super().__init__(path, names_path(path))
        self.count, self.done = count, 0
        self.array: Any = None
        names = self.asides[names_path(path)]
        self.names_file = open(names, "w", newline="", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
        self.lines = csv.writer(self.names_file)
        self.lines.writerow(["name", "label"])

    def write(self, part: Embeddings) -> None:
        features = part.features.numpy()
        if self.array is None:
            shape = (self.count, features.shape[1])
            self.array = np.lib.format.open_memmap(self.aside, "w+", np.float32, shape)
        self.array[self.done : self.done + len(features)] = features
        self.done += len(features)
        self.lines.writerows(zip(part.names, part.labels, strict=True))

    def close(self) -> None:
        self.names_file.close()
        if self.array is not None:
            self.array.flush()
            kept = np.array(self.array[: self.done]) if self.done < self.count else None
            self.array = None
            if kept is not None:  # some images could not be read; copied first, for the file was mapped
                with open(self.aside, "wb") as file:
                    np.save(file, kept)


class ParquetWriter(Writer):
    """Columns name, label and features, a list of D float32 values; needs the extra "tables"."""

    def __init__(self, path: Path, count: int):
        try:
            import pyarrow
            import pyarrow.parquet
        except ModuleNotFoundError:
            raise ModuleNotFoundError("--to parquet needs pyarrow: pip install pyarrow") from None
        super().__init__(path)
        self.arrow = pyarrow
        self.table: Any = None

    def write(self, part: Embeddings) -> None:
        flat = self.arrow.array(part.features.numpy().ravel())
        features = self.arrow.FixedSizeListArray.from_arrays(flat, part.features.shape[1])
        columns = {"name": part.names, "label": part.labels, "features": features}
        table = self.arrow.table(columns)
        if self.table is None:
            self.table = self.arrow.parquet.ParquetWriter(self.aside, table.schema)
        self.table.write_table(table)

    def close(self) -> None:
        if self.table is not None:
            self.table.close()


WRITERS: dict[str, type[CsvWriter] | type[NpyWriter] | type[ParquetWriter]] = {
    "parquet": ParquetWriter,
    "npy": NpyWriter,
    "csv": CsvWriter,
}


def names_path(path: Path) -> Path:
    """The CSV of names beside an .npy file."""
    return path.with_name(path.stem + ".names.csv")


def read_embeddings(path: Path) -> Embeddings:
    """What a `Writer` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if its name ends in none of .parquet, .npy, .csv.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet
        except ModuleNotFoundError:
            raise ModuleNotFoundError(f"{path} needs pyarrow: pip install pyarrow") from None
        table = pyarrow.parquet.read_table(path)
        column = table["features"].combine_chunks()
        features = np.asarray(column.values).reshape(len(table), -1)
        names, labels = table["name"].to_pylist(), table["label"].to_pylist()
        return Embeddings(names, labels, torch.from_numpy(features.copy()))
    if path.suffix == ".npy":
        rows = _rows(names_path(path))
        return Embeddings([r[0] for r in rows], [r[1] for r in rows], torch.from_numpy(np.load(path)))
    if path.suffix == ".csv":
        rows = _rows(path)
        values = np.array([row[2:] for row in rows], dtype=np.float32)
        return Embeddings([r[0] for r in rows], [r[1] for r in rows], torch.from_numpy(values))
    raise ValueError(f"{path} is no file of embeddings: its name ends in none of .{', .'.join(WRITERS)}")


def _rows(path: Path) -> list[list[str]]:
    """The lines of a CSV below its header."""
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))[1:]
