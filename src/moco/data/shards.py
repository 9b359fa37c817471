"""Images in tar shards, read in any order: what a billion images need.

A folder of plain tar files in WebDataset's form (members of one sample share a name up to the first
dot: 000017.jpg, 000017.cls) with two small files beside them, which say where each sample lies (see
`moco.data.shard_table`). A sample is one short read at a known place, so any order costs the same
memory, nothing is read to be passed by, and a run resumes in the middle of an epoch. `moco pack` writes
these files; shards from elsewhere are indexed when they are first opened.
"""

import hashlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moco.data.encoded import EncodedSource
from moco.data.form import Form
from moco.data.reading import Reading
from moco.data.scan import EXTENSIONS
from moco.data.shard_table import (
    BLOCK,
    RECORD,
    SAMPLES,
    SHARDS,
    has_shards,
    index_shards,
    read_table,
    tar_files,
)
from moco.data.source import renumbered
from moco.data.unreadable import Lost

MOST_LABELS = 50_000_000  # of more images no labels are loaded, and kNN is not measured
_OPEN = 256  # files held open
_NAMED = re.compile(r"sample (\d[\d,]*) of (.+)", re.DOTALL)


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
        quarantine: samples to leave out, as `sample_name` names them, wherever their folder lies now.
        part: the folder's name where it is a part of a set, such as "train"; names of samples begin with it.

    Raises:
        FileNotFoundError: if there is no shard, or no image in them.
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
        quarantine: frozenset[str] = frozenset(),
        part: str = "",
    ):
        if not has_shards(folder):
            raise FileNotFoundError(f"no tar shard in {folder}")
        if not (folder / SHARDS).exists():
            index_shards(folder)
        self.folder, self.name, self.reading = folder, name or str(folder), reading or Reading()
        self.part = part
        self.table = read_table(folder)
        self._ends = np.cumsum(self.table.samples)
        count = int(self._ends[-1]) if len(self._ends) else 0
        self._out = self._listed(quarantine)
        self.left_out = len(self._out)
        self._passed = self._out - np.arange(len(self._out))  # images that come before each of these
        if count == len(self._out):
            raise FileNotFoundError(
                f"no image in the shards of {folder} (looked for {', '.join(EXTENSIONS)})"
            )
        out = np.bincount(self._shard(self._out), minlength=len(self.table.samples))
        self.shards = self.table.samples - out
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
        self.notes = tuple(note for note in (self.table.note, self._missing(), self._unlisted()) if note)
        self.take_form(form or self.sniff_form())

    def _listed(self, quarantine: frozenset[str]) -> np.ndarray:
        """Numbers of the samples that a list names, in their order."""
        if not quarantine:
            return np.empty(0, np.int64)
        shards = {name.decode(): i for i, name in enumerate(self.table.names)}
        folders = {self.part, self.folder.name, *(["train", ""] if self.part in ("train", "") else [])}
        found = set()
        for match in filter(None, map(_NAMED.fullmatch, quarantine)):
            path = Path(match[2])
            number, shard = int(match[1].replace(",", "")), shards.get(path.name)
            if path.parent.name not in folders:
                continue
            if shard is not None and number < self.table.samples[shard]:
                found.add(self._first(shard) + number)
        return np.array(sorted(found), np.int64)

    def _labels(self) -> Tensor:
        """The class of each sample, -1 where it has none."""
        labels = np.fromfile(self.folder / SAMPLES, RECORD)["label"].astype(np.int64)
        lost = np.repeat(self._broken, self.table.samples)
        labels[lost] = -1
        labels, self.lost = np.delete(labels, self._out), torch.from_numpy(np.delete(lost, self._out))
        return renumbered(torch.from_numpy(labels), self.table.classes, self.classes, self.name)

    def _is_broken(self, shard: int) -> bool:
        try:
            return os.stat(self._path(shard)).st_size != self.table.sizes[shard]
        except OSError:
            return True

    def _missing(self) -> str:
        """A sentence about shards that are not there, or "".

        Raises:
            ValueError: if more samples are missing than may be.
        """
        broken = self._broken & (self.shards > 0)
        if not broken.any():
            return ""
        lost = int(self.shards[broken].sum())
        names = b", ".join(self.table.names[broken][:3]).decode()
        more = ", ..." if broken.sum() > 3 else ""
        note = (
            f"{broken.sum():,} of {len(self.shards):,} shards are missing or of the wrong length "
            f"({names}{more}): {lost:,} samples, {100 * lost / len(self):.2g} %"
        )
        if lost > self.reading.budget * len(self):
            raise ValueError(
                f"at most {100 * self.reading.budget:g} % of the samples may be missing, but {note}; "
                "restore the shards, or raise --reading.budget"
            )
        return f"{note}; other images take their place"

    def _unlisted(self) -> str:
        """A sentence about tar files that the table does not know, or ""."""
        known = set(self.table.names.tolist())
        more = [path.name for path in tar_files(self.folder) if os.fsencode(path.name) not in known]
        if not more:
            return ""
        shown = ", ".join(more[:3]) + (", ..." if len(more) > 3 else "")
        return (
            f"{len(more):,} tar file{'s' * (len(more) > 1)} in {self.folder} left out ({shown}), which "
            f"{SHARDS} does not name; delete it and {SAMPLES} to index all shards anew"
        )

    def __len__(self) -> int:
        return int(self._ends[-1]) - len(self._out)

    def content(self, index: int) -> bytes:
        sample = self._sample(index)
        shard = int(self._shard(sample))
        if self._broken[shard]:
            raise Lost(self.sample_name(index), "its shard is missing or of the wrong length")
        record = self._index.read(RECORD.itemsize, sample * RECORD.itemsize)
        block, length, _ = np.frombuffer(record, RECORD)[0]
        content = self._file(shard).read(int(length), int(block) * BLOCK)
        if len(content) != length:
            raise OSError(f"it has {len(content):,} bytes of {length:,}")
        return content

    def sample_name(self, index: int) -> str:
        sample = self._sample(index)
        shard = int(self._shard(sample))
        name = self.table.names[shard].decode()
        return f"sample {sample - self._first(shard):,} of {f'{self.part}/{name}' if self.part else name}"

    def _sample(self, index: int) -> int:
        """Number of an image among all samples of the shards."""
        return index + int(np.searchsorted(self._passed, index, side="right"))

    def _shard(self, samples: np.ndarray | int) -> np.ndarray:
        """The shards that hold samples."""
        return np.searchsorted(self._ends, samples, side="right")

    def _first(self, shard: int) -> int:
        """Number of the first sample of a shard."""
        return int(self._ends[shard] - self.table.samples[shard])

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
        table = (self.folder / SHARDS).read_bytes()
        return hashlib.sha256(table + self._out.tobytes()).hexdigest()[:16]


class _File:
    """A file read at any place, by any thread; closed when nobody holds it."""

    def __init__(self, path: Path | str):
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def read(self, length: int, offset: int) -> bytes:
        return os.pread(self.descriptor, length, offset)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if self.descriptor >= 0:
            close(self.descriptor)
