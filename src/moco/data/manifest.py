"""Tables of images: a list of paths, or a CSV, TSV or Parquet file with path, label, group and split."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moco.data.encoded import ListSource
from moco.data.form import Form
from moco.data.reading import Reading
from moco.data.source import each_its_own
from moco.data.table import in_order, places, read_table

SUFFIXES = (".txt", ".csv", ".tsv", ".parquet")
_COLUMNS = ("path", "label", "group", "split")
_SPLITS = {"train": ("train", "training"), "test": ("test", "val", "valid", "validation")}


def open_manifest(
    path: Path,
    split: str,
    *,
    reading: Reading,
    quarantine: frozenset[str] = frozenset(),
    form: Form | None = None,
    classes: Sequence[str] = (),
) -> ListSource | None:
    """The images of a table that belong to a split; paths in it are relative to its folder.

    Without a column "split" every image is a training image; rows of other words than train, test and their
    like are left out, which a note says. A label of -1 is none, which a note says too. Capitals in the names
    of columns, and spaces around them and around values, do not count.

    Args:
        path: of the table.
        split: "train" or "test".
        reading: how files become pixels.
        quarantine: paths to leave out.
        form, classes: those of the training images; none finds them.

    Raises:
        FileNotFoundError: if no image is left.
        ValueError: if it is not UTF-8, there is no column "path" or two of one name, a path goes over the end
            of a line, a label or group is missing in some rows only, or a class is unknown.
        ModuleNotFoundError: if a Parquet file is given without pyarrow.
    """
    try:
        columns = _read(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8, but {error}; save it as UTF-8") from None
    rows, notes = np.arange(len(columns["path"])), tuple[str, ...]()
    if "split" in columns:
        said = [str(value).strip().lower() for value in columns["split"]]
        notes = _others(said, path)
        words = _SPLITS[split]
        if split == "test":  # as of folders: validation images only where there are no others
            words = words[:1] if words[0] in said else words[1:]
        rows = rows[[value in words for value in said]]
    elif split == "test":
        return None
    of_split = len(rows)
    rows = np.array([row for row in rows if columns["path"][row] not in quarantine], dtype=np.int64)
    if not len(rows):
        if split == "test":
            return None
        found = ", ".join(sorted({str(value) for value in columns.get("split", ())})[:5])
        where = f', whose column "split" holds {found}: training images are called train' if found else ""
        raise FileNotFoundError(f"no training image in {path}{where}")
    chosen = {name: [values[row] for row in rows] for name, values in columns.items()}
    labels, names = _numbered(chosen, "label", path, classes, none="-1")
    groups, _ = _numbered(chosen, "group", path)
    if groups is not None:
        alone = torch.tensor([str(value) == "-1" for value in chosen["group"]])
        groups = each_its_own(torch.where(alone, -1, groups))
    source = ListSource(
        path.parent, [str(value) for value in chosen["path"]], name=f"{path} ({split})", labels=labels,
        classes=names, groups=groups, reading=reading, form=form,
    )  # fmt: skip
    source.left_out = of_split - len(rows)
    source.notes = notes + _repeated(chosen, path) + _unlabelled(labels, path)
    return source


def _repeated(chosen: Mapping[str, list[Any]], path: Path) -> tuple[str, ...]:
    """A sentence about images that several rows name, if there are any and no group holds them together."""
    rows = len(chosen["path"]) - len(set(chosen["path"]))
    if not rows or "group" in chosen:
        return ()
    name = Counter(chosen["path"]).most_common(1)[0][0]
    return (
        f"{rows:,} row{'s' * (rows > 1)} of {path} name{'s' * (rows == 1)} an image that another row named "
        f"already, such as {name}: each counts as an image of its own, also as a negative and where images "
        "are held out; a column group with the path in it would keep them together",
    )


def _unlabelled(labels: Tensor | None, path: Path) -> tuple[str, ...]:
    """A sentence about rows whose label says that there is none, if there are any."""
    rows = 0 if labels is None else int((labels < 0).sum())
    if not rows:
        return ()
    return (
        f"{rows:,} row{'s' * (rows > 1)} of {path} with the label -1, which is no class: nothing is measured "
        "on them; if it is one, call it otherwise",
    )


def _others(said: Sequence[str], path: Path) -> tuple[str, ...]:
    """A sentence about the rows that are of no split, if there are any."""
    others = Counter(
        word or '""' for word in said if word not in {w for words in _SPLITS.values() for w in words}
    )
    if not others:
        return ()
    shown = ", ".join(f"{count:,} of {word}" for word, count in others.most_common(3))
    shown += ", ..." * (len(others) > 3)
    return (
        f"{others.total():,} row{'s' * (others.total() > 1)} of {path} left out ({shown}): its column split "
        "says neither train nor test (or val) there",
    )


def _read(path: Path) -> dict[str, list[Any]]:
    """Columns by name."""
    if path.suffix.lower() == ".txt":
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        return {"path": [line.strip() for line in lines if line.strip()]}
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow.parquet
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                f"reading {path} needs pyarrow: pip install 'momentum-contrast[tables]', or give a .csv"
            ) from None
        table = pyarrow.parquet.read_table(path)
        names = table.column_names
        found = places(names, _COLUMNS, path)
        columns = {column: table.column(place).to_pylist() for column, place in found.items()}
    else:
        names, rows = read_table(path)
        columns = {
            column: [row[place].strip() if place < len(row) else "" for row in rows]
            for column, place in places(names, _COLUMNS, path).items()
        }
    if "path" not in columns:
        raise ValueError(f"{path} must have a column path (and may have {', '.join(_COLUMNS[1:])}), "
                         f"got {', '.join(names) or 'nothing'}")  # fmt: skip
    if broken := next((value for value in columns["path"] if "\n" in str(value)), None):
        raise ValueError(
            f"a path in {path} goes over the end of a line, {broken[:40]!r}: look for a quotation mark there "
            "that is not closed"
        )
    return columns


def _numbered(
    columns: Mapping[str, list[Any]], name: str, path: Path, classes: Sequence[str] = (), none: str = ""
) -> tuple[Tensor | None, list[str]]:
    """Numbers for the values of a column, -1 for the one that is none, and the values in their order."""
    values = columns.get(name, [])
    absent = [value is None or value == "" for value in values]
    if not values or all(absent):
        return None, list(classes)
    if any(absent):
        raise ValueError(
            f"every image of {path} must have a {name}, or none; {sum(absent)} of {len(absent)} have none, "
            f"such as {columns['path'][absent.index(True)]}; -1 there says that it has none"
        )
    words = [str(value) for value in values]
    every = list(classes) or in_order(word for word in words if word != none)
    number = {none: -1} | {word: i for i, word in enumerate(every)}
    if unknown := sorted(set(words) - set(number)):
        raise ValueError(f"{path}: {unknown[0]} is a class that the training images do not have")
    return torch.tensor([number[word] for word in words]), every
