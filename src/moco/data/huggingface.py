"""Images of Hugging Face data sets: saved to disk, as Parquet or Arrow files, in memory, or by name."""

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moco.data.encoded import EncodedSource, read_file
from moco.data.form import Form
from moco.data.reading import Reading
from moco.data.source import each_its_own, renumbered

_LOOKED_AT = 16  # images whose bytes are in a fingerprint
_SPLITS = {"train": ("train",), "test": ("test", "validation", "valid", "val")}


class HuggingFaceSource(EncodedSource):
    """A `datasets.Dataset` with a column of images; the bytes are read, and decoded as files are.

    Args:
        dataset: has a column of type Image; a ClassLabel column gives labels, a column "group" groups.
        name: what to call it.
        part: what names of images begin with, such as "train"; "" takes the name.
        classes: the classes to number by, those of the training images; none takes the column's.
        reading: how files become pixels.
        quarantine: names of images to leave out.
        form: of the pixels; None finds it.

    Raises:
        ValueError: if it has no column of images, or an image is of none of the classes given.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        name: str = "dataset",
        part: str = "",
        classes: Sequence[str] = (),
        reading: Reading | None = None,
        quarantine: frozenset[str] = frozenset(),
        form: Form | None = None,
    ):
        import datasets

        columns = [c for c, kind in dataset.features.items() if isinstance(kind, datasets.Image)]
        if not columns:
            raise ValueError(
                f"{name} must have a column of type Image, it has {', '.join(map(str, dataset.features))}"
            )
        self.column, self.name, self.reading = columns[0], name, reading or Reading()
        self.part = part
        dataset = dataset.cast_column(self.column, datasets.Image(decode=False))
        rows = np.arange(len(dataset))
        if quarantine:
            rows = np.array([i for i in rows if self._row_name(int(i)) not in quarantine], dtype=np.int64)
        self._rows, self.dataset = rows, dataset
        self.left_out = len(dataset) - len(rows)
        self.labels, self.classes = None, list(classes)
        for column, kind in dataset.features.items():
            if isinstance(kind, datasets.ClassLabel):
                numbers = [-1 if label is None else label for label in dataset[column][:]]
                labels = torch.as_tensor(numbers)[torch.from_numpy(rows)]
                if (labels >= 0).all():
                    self.classes = self.classes or list(kind.names)
                    self.labels = renumbered(labels, kind.names, self.classes, name)
                break
        if "group" in dataset.features:
            values = np.asarray(["-1" if v is None else str(v) for v in dataset["group"][:]])[rows]
            own = np.unique(values, return_inverse=True)[1]
            self.groups = each_its_own(torch.from_numpy(np.where(values == "-1", -1, own)))
        self.take_form(form or self.sniff_form())

    def __len__(self) -> int:
        return len(self._rows)

    def content(self, index: int) -> bytes:
        cell = self.dataset[int(self._rows[index])][self.column]
        if cell is None:
            raise ValueError("the cell is empty")
        if cell["bytes"] is not None:
            return bytes(cell["bytes"])
        return read_file(Path(cell["path"]), self.reading)

    def sample_name(self, index: int) -> str:
        return self._row_name(int(self._rows[index]))

    def _row_name(self, row: int) -> str:
        return f"{self.part or self.name}[{row}]"

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.dataset.features!r}{len(self.dataset)}".encode())
        digest.update(self._rows.tobytes())
        for tensor in self.labels, self.groups:
            if tensor is not None:
                digest.update(tensor.numpy().tobytes())
        for index in np.unique(np.linspace(0, len(self) - 1, _LOOKED_AT).astype(np.int64)).tolist():
            with contextlib.suppress(OSError, ValueError):  # whoever reads it says what it lacks
                digest.update(self.content(index))
        return digest.hexdigest()[:16]


def open_huggingface(
    spec: str,
    split: str,
    *,
    reading: Reading,
    quarantine: frozenset[str] = frozenset(),
) -> HuggingFaceSource | None:
    """The split of a data set: a folder of `save_to_disk`, a .parquet or .arrow file, or a name.

    A name is looked up by the `datasets` library, in its cache and, if that allows, on its hub.

    Raises:
        ModuleNotFoundError: if `datasets` is not installed.
        FileNotFoundError: if there is nothing of that name.
        ValueError: if it has no training split or no images.
    """
    try:
        import datasets
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"hf:{spec} needs datasets: pip install 'momentum-contrast[huggingface]'"
        ) from None
    path = Path(spec).expanduser()
    try:
        if path.is_dir():
            found = datasets.load_from_disk(str(path))
        elif path.suffix == ".parquet" and path.is_file():
            found = datasets.Dataset.from_parquet(str(path))
        elif path.suffix == ".arrow" and path.is_file():
            found = datasets.Dataset.from_file(str(path))
        else:
            found = datasets.load_dataset(spec)
    except (OSError, datasets.exceptions.DatasetsError, ConnectionError) as error:
        raise FileNotFoundError(f"there is no data set hf:{spec}: {error}") from None
    splits = {"train": found} if isinstance(found, datasets.Dataset) else found

    def part(split: str, train: HuggingFaceSource | None = None) -> HuggingFaceSource | None:
        for word in _SPLITS[split]:
            if word in splits:
                classes, form = (train.classes, train.form) if train is not None else ((), None)
                return HuggingFaceSource(
                    splits[word], name=f"hf:{spec} ({split})", part=split, classes=classes, reading=reading,
                    quarantine=quarantine, form=form,
                )  # fmt: skip
        return None

    train = part("train")
    if split == "test":
        return part("test", train)
    if train is None:
        raise ValueError(f"hf:{spec} must have a split named train, it has {', '.join(splits)}")
    return train
