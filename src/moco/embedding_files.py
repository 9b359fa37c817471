"""Features of many images as files: written part by part, whole or not there, and read again."""

import csv
import importlib.util
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from moco.embeddings import Embeddings


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
        try:
            self.close()
            for path, aside in self.asides.items():
                if kind is None:
                    aside.replace(path)
        finally:  # a full disk is found when a file is closed, too
            for aside in self.asides.values():
                aside.unlink(missing_ok=True)

    @abstractmethod
    def write(self, part: Embeddings) -> None:
        """Append a part."""

    @abstractmethod
    def close(self) -> None:
        """Finish the file."""


class CsvWriter(Writer):
    """One line per image: name, label, group where images are in groups, the digest of the weights, and the
    features to nine digits, which is all float32 holds."""

    def __init__(self, path: Path, count: int):
        super().__init__(path)
        self.file = open(self.aside, "w", newline="", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
        self.lines = csv.writer(self.file)
        self.begun = False

    def write(self, part: Embeddings) -> None:
        if not self.begun:
            self.begun = True
            self.lines.writerow([*_about(part), *(f"f{i}" for i in range(part.features.shape[1]))])
        for *about, row in zip(*_about(part).values(), part.features.tolist(), strict=True):
            self.lines.writerow([*about, *(f"{value:.9g}" for value in row)])

    def close(self) -> None:
        self.file.close()


class NpyWriter(Writer):
    """A float32 array (M, D), and beside it a CSV with name, label, group and weights of each row."""

    def __init__(self, path: Path, count: int):
        super().__init__(path, names_path(path))
        self.count, self.done = count, 0
        self.array: Any = None
        names = self.asides[names_path(path)]
        self.names_file = open(names, "w", newline="", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
        self.lines = csv.writer(self.names_file)

    def write(self, part: Embeddings) -> None:
        features = part.features.numpy()
        if self.array is None:
            self.lines.writerow(_about(part))
            shape = (self.count, features.shape[1])
            self.array = np.lib.format.open_memmap(self.aside, "w+", np.float32, shape)
        self.array[self.done : self.done + len(features)] = features
        self.done += len(features)
        self.lines.writerows(zip(*_about(part).values(), strict=True))

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
    r"""Columns name, label, group where images are in groups, weights, and features, a list of D float32
    values; needs the extra "tables". Columns hold text: bytes of a name that are no UTF-8 become \udcXX."""

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
        about = _about(part)
        texts = {name: list(map(_text, about[name])) for name in ("name", "label")}
        table = self.arrow.table(about | texts | {"features": features})
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


def holds_embeddings(path: Path) -> bool:
    """Whether a file is what a `Writer` wrote; images in tables and arrays have the same endings."""
    if not path.is_file():
        return False
    if path.suffix == ".csv":
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            header = file.readline().rstrip().split(",")
        return header[:2] == ["name", "label"] and "f0" in header
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow"):
        import pyarrow.parquet

        return "features" in pyarrow.parquet.read_schema(path).names
    return path.suffix == ".npy" and names_path(path).is_file()


def read_embeddings(path: Path) -> Embeddings:
    """What a `Writer` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if its name ends in none of .parquet, .npy, .csv, or it has features of several weights.
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
        about = {name: table[name].to_pylist() for name in table.column_names if name != "features"}
        return _embeddings(about, features.copy())
    if path.suffix == ".npy":
        header, rows = _lines(names_path(path))
        return _embeddings({name: [row[i] for row in rows] for i, name in enumerate(header)}, np.load(path))
    if path.suffix == ".csv":
        header, rows = _lines(path)
        first = header.index("f0")
        about = {name: [row[i] for row in rows] for i, name in enumerate(header[:first])}
        return _embeddings(about, np.array([row[first:] for row in rows], dtype=np.float32))
    raise ValueError(f"{path} is no file of embeddings: its name ends in none of .{', .'.join(WRITERS)}")


def _about(part: Embeddings) -> dict[str, list[Any]]:
    """The columns beside the features."""
    groups = {} if part.groups is None else {"group": part.groups.tolist()}
    return {"name": part.names, "label": part.labels, **groups, "weights": [part.weights] * len(part.names)}


def _text(name: str) -> str:
    """A name as valid Unicode."""
    return name.encode(errors="backslashreplace").decode()


def _embeddings(about: dict[str, list[Any]], features: np.ndarray) -> Embeddings:
    """What `_about` and the features came from."""
    groups = torch.tensor([int(group) for group in about["group"]]) if "group" in about else None
    whose = set(about.get("weights", []))
    if len(whose) > 1:
        raise ValueError(
            f"features of {len(whose)} different weights are in one file: {', '.join(sorted(whose))}"
        )
    return Embeddings(about["name"], about["label"], torch.from_numpy(features), groups, *whose)


def _lines(path: Path) -> tuple[list[str], list[list[str]]]:
    """The header of a CSV, and the lines below it."""
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        header, *rows = csv.reader(file)
    return header, rows
