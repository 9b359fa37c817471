"""Images in tar shards, read in any order: what a billion images need.

A folder of plain tar files in WebDataset's form (members of one sample share a name up to the first
dot: 000017.jpg, 000017.cls) with two small files beside them, which say where each sample lies (see
`moco.data.shard_table`). A sample is one short read at a known place, so any order costs the same
memory, nothing is read to be passed by, and a run resumes in the middle of an epoch. `moco pack` writes
these files; shards from elsewhere are indexed when they are first opened.
"""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moco.data.encoded import EncodedSource
from moco.data.form import Form
from moco.data.reading import Reading
from moco.data.scan import EXTENSIONS
from moco.data.shard_table import BLOCK, RECORD, SAMPLES, SHARDS, has_shards, index_shards, read_table
from moco.data.source import renumbered
from moco.data.unreadable import Lost

MOST_LABELS = 50_000_000  # of more images no labels are loaded, and kNN is not measured
_OPEN = 256  # files held open


class ShardSource(EncodedSource):
    """The images of a folder of tar shards.

    Shards that are missing or of another length than the table says are named in `notes`; their
    samples are lost: they cannot be read and have no class.

    Args:
        folder: holds the shards.
        name: what to call it.
        classes: the classes to number by, those of the training images; none takes the table's.
        reading: how images become pixels, and how many may be missing.
        form: of the pixels, that of the training images; None finds it.

    Raises:
        FileNotFoundError: if there is no shard.
        ValueError: if more samples are missing than `reading.budget` allows, the table is damaged, or
            a sample is of none of the classes given.
    """

    shards: np.ndarray

    def __init__(
        self,
        folder: Path,
        *,
        name: str | None = None,
        classes: Sequence[str] = (),
        reading: Reading | None = None,
        form: Form | None = None,
    ):
        if not has_shards(folder):
            raise FileNotFoundError(f"no tar shard in {folder}")
        if not (folder / SHARDS).exists():
            index_shards(folder)
        self.folder, self.name, self.reading = folder, name or str(folder), reading or Reading()
        self.table = read_table(folder)
        self.shards = self.table.samples
        self._ends = np.cumsum(self.shards)
        count = int(self._ends[-1]) if len(self._ends) else 0
        if not count:
            raise FileNotFoundError(
                f"no image in the shards of {folder} (looked for {', '.join(EXTENSIONS)})"
            )
        self._index = _File(folder / SAMPLES)
        if (have := os.fstat(self._index.descriptor).st_size) != count * RECORD.itemsize:
            raise ValueError(
                f"{folder / SAMPLES} must hold {count:,} samples, it has {have:,} bytes; "
                f"delete it and {SHARDS} to index the shards anew"
            )
        self._files: OrderedDict[int, _File] = OrderedDict()
        self._lock = threading.Lock()
        self._broken = np.array([self._is_broken(shard) for shard in range(len(self.shards))])
        self.classes = list(classes or self.table.classes)
        self.labels = self._labels() if self.table.classes and count <= MOST_LABELS else None
        self.notes = self._notes(count)
        self.take_form(form or self.sniff_form())

    def _labels(self) -> Tensor:
        """The class of each sample, -1 where it has none."""
        labels = np.fromfile(self.folder / SAMPLES, RECORD)["label"].astype(np.int64)
        labels[np.repeat(self._broken, self.shards)] = -1
        return renumbered(torch.from_numpy(labels), self.table.classes, self.classes, self.name)

    def _is_broken(self, shard: int) -> bool:
        try:
            return os.stat(self._path(shard)).st_size != self.table.sizes[shard]
        except OSError:
            return True

    def _notes(self, count: int) -> tuple[str, ...]:
        if not self._broken.any():
            return ()
        lost = int(self.shards[self._broken].sum())
        names = b", ".join(self.table.names[self._broken][:3]).decode()
        more = ", ..." if self._broken.sum() > 3 else ""
        note = (
            f"{self._broken.sum():,} of {len(self.shards):,} shards are missing or of the wrong length "
            f"({names}{more}): {lost:,} samples, {100 * lost / count:.2g} %"
        )
        if lost > self.reading.budget * count:
            raise ValueError(
                f"at most {100 * self.reading.budget:g} % of the samples may be missing, but {note}; "
                "restore the shards, or raise --reading.budget"
            )
        return (f"{note}; other images take their place",)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def content(self, index: int) -> bytes:
        shard = self._shard(index)
        if self._broken[shard]:
            raise Lost(self.sample_name(index), "its shard is missing or of the wrong length")
        record = self._index.read(RECORD.itemsize, index * RECORD.itemsize)
        block, length, _ = np.frombuffer(record, RECORD)[0]
        content = self._file(shard).read(int(length), int(block) * BLOCK)
        if len(content) != length:
            raise OSError(f"it has {len(content):,} bytes of {length:,}")
        return content

    def sample_name(self, index: int) -> str:
        shard = self._shard(index)
        return f"sample {index - int(self._ends[shard]) + int(self.shards[shard]):,} of {self._path(shard)}"

    def _shard(self, index: int) -> int:
        """The shard that holds a sample."""
        return int(np.searchsorted(self._ends, index, side="right"))

    def _path(self, shard: int) -> str:
        return os.path.join(self.folder, self.table.names[shard].decode())

    def _file(self, shard: int) -> "_File":
        with self._lock:
            if shard not in self._files:
                self._files[shard] = _File(self._path(shard))
                if len(self._files) > _OPEN:
                    self._files.popitem(last=False)
            self._files.move_to_end(shard)
            return self._files[shard]

    def fingerprint(self) -> str:
        return hashlib.sha256((self.folder / SHARDS).read_bytes()).hexdigest()[:16]


class _File:
    """A file read at any place, by any thread; closed when nobody holds it."""

    def __init__(self, path: Path | str):
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def read(self, length: int, offset: int) -> bytes:
        return os.pread(self.descriptor, length, offset)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
