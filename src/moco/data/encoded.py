"""Sources of encoded images, and files on a disk: those of a folder, or named one by one."""

import hashlib
import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from moco.data.decode import check, decode
from moco.data.form import Form, common_form
from moco.data.header import Header
from moco.data.index import FileIndex, open_index
from moco.data.memory import ROOM, need
from moco.data.reading import Reading
from moco.data.scan import EXTENSIONS, FOLLOWED, LINKS
from moco.data.source import Source, unknown_class
from moco.data.unreadable import Unreadable

_SNIFFED = 1024  # members whose headers say what form a set has, where there is no index


class Opened(NamedTuple):
    """An image that was read but not decoded, and what to call it."""

    content: bytes
    header: Header
    name: str


class EncodedSource(Source):
    """Images in the bytes of their files."""

    reading: Reading
    form: Form

    @abstractmethod
    def content(self, index: int) -> bytes:
        """The bytes of an image's file; an OSError or ValueError makes it unreadable."""

    def open(self, index: int) -> Opened:
        """The bytes and header of an image.

        Raises:
            Unreadable: if there are none, or it is no image that may be decoded.
        """
        name = self.sample_name(index)
        try:
            content = self.content(index)
        except (OSError, ValueError) as error:
            raise Unreadable(name, str(error)) from error
        return Opened(content, check(content, name, self.reading), name)

    def room(self, opened: Opened, factor: int = 1) -> AbstractContextManager[None]:
        """Memory for decoding an opened image and using its pixels; it is waited for."""
        most = need(opened.content, opened.header, self.form, factor).most
        return ROOM.take(min(most, self.reading.max_memory), self.reading.max_memory)

    def decode(self, opened: Opened, factor: int = 1) -> Shaped[Tensor, "channels H W"]:
        """The pixels of an opened image; a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size.

        Raises:
            Unreadable: if it is broken, or does not fit the others.
        """
        return decode(
            opened.content, opened.name, self.form, self.reading, header=opened.header, factor=factor
        )

    def read(self, index: int) -> Shaped[Tensor, "channels H W"]:
        opened = self.open(index)
        with self.room(opened):
            return self.decode(opened)

    def take_form(self, form: Form) -> None:
        """Read every image in this form."""
        self.form, self.channels, self.dtype = form, form.channels, form.dtype

    def sniff_form(self) -> Form:
        """The form that the headers of evenly spaced images ask for."""
        counts: Counter[tuple[int, int, bool]] = Counter()
        for i in np.unique(np.linspace(0, len(self) - 1, min(_SNIFFED, len(self))).astype(int)):
            try:
                header = self.open(int(i)).header
            except Unreadable:
                continue
            counts[header.channels, header.depth, header.alpha] += 1
        return common_form(counts, self.reading)


@contextmanager
def looking(source: Source, index: int) -> Iterator[Shaped[Tensor, "channels H W"]]:
    """The pixels of an image while they are used: memory for a large one is held until the end.

    Raises:
        Unreadable: if it cannot be decoded.
    """
    if not isinstance(source, EncodedSource):
        yield source.read(index)
        return
    opened = source.open(index)
    with source.room(opened):
        yield source.decode(opened)


class FolderSource(EncodedSource):
    """The image files under a folder, at any depth.

    Symbolic links are followed where that is asked for, or there is nothing else (`follows`).

    When every image lies in a subfolder and there are at least two of these, the first-level
    subfolders are the classes; otherwise there are no labels.

    Args:
        root: the folder.
        name: what to call it.
        classes: the classes to number by, those of the training images; None finds them.
        reading: how files become pixels.
        form: of the pixels, that of the training images; None finds it.
        quarantine: paths below the root to leave out.
        index: of the folder, if it is open already.

    Raises:
        FileNotFoundError: if there is no such folder, or no image in it.
        ValueError: if a subfolder is none of the classes given.
    """

    def __init__(
        self,
        root: Path,
        *,
        name: str | None = None,
        classes: Sequence[str] = (),
        reading: Reading | None = None,
        form: Form | None = None,
        quarantine: frozenset[str] = frozenset(),
        index: FileIndex | None = None,
    ):
        self.root, self.name = root, name or str(root)
        self.reading = reading or Reading()
        self.follows = self.reading.follow_links
        self.index = index or open_index(root, follow_links=self.follows)
        if not len(self.index) and LINKS in self.index.skipped:
            self.index, self.follows = open_index(root, follow_links=True), True
            self.notes = (f"{self.name} has symbolic links only, so they are followed",)
        self._kept = kept(self.index, quarantine)
        self.left_out = len(self.index) - len(self)
        if not len(self):
            skipped = "".join(f"; skipped {n:,} {why}" for why, n in sorted(self.index.skipped.items()))
            raise FileNotFoundError(
                f"no image in {root} (looked for {', '.join(EXTENSIONS)} at any depth{skipped})"
            )
        self.take_form(form or common_form(self.index.forms, self.reading))
        self.classes, self.labels = list(classes), None
        tops = [folder.partition("/")[0] for folder in self.index.folders]
        if "" not in tops and (classes or len(set(tops)) > 1):
            self.classes = self.classes or sorted(set(tops))
            number = {folder: i for i, folder in enumerate(self.classes)}
            if unknown := sorted(set(tops) - set(number)):
                raise unknown_class(str(root / unknown[0]), self.classes)
            labels = np.repeat([number[top] for top in tops], np.diff(self.index.starts))
            self.labels = torch.from_numpy(labels if self._kept is None else labels[self._kept])

    def __len__(self) -> int:
        return len(self.index) if self._kept is None else len(self._kept)

    def content(self, index: int) -> bytes:
        return read_file(self.root / self.sample_name(index), self.reading)

    def sample_name(self, index: int) -> str:
        return self.index.path(index if self._kept is None else int(self._kept[index]))

    def fingerprint(self) -> str:
        digest = self.index.fingerprint()
        if self._kept is None:
            return digest
        return hashlib.sha256(digest.encode() + self._kept.tobytes()).hexdigest()[:16]


def kept(index: FileIndex, quarantine: frozenset[str]) -> np.ndarray | None:
    """Numbers of the images of an index that are not in quarantine; None if that is all of them."""
    if not quarantine:
        return None
    return np.array([i for i in range(len(index)) if index.path(i) not in quarantine], dtype=np.int64)


class ListSource(EncodedSource):
    """Files named one by one, with labels and groups where there are any.

    Args:
        root: what relative paths are relative to.
        paths: of the files.
        name: what to call it.
        labels: (N,) class of each image, or None.
        classes: names of the classes.
        groups: (N,) group of each image, or None.
        reading: how files become pixels.
        form: of the pixels; None finds it.
    """

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        *,
        name: str,
        labels: Tensor | None = None,
        classes: Sequence[str] = (),
        groups: Tensor | None = None,
        reading: Reading | None = None,
        form: Form | None = None,
    ):
        self.root, self.paths, self.name, self.reading = root, list(paths), name, reading or Reading()
        self.labels, self.classes, self.groups = labels, list(classes), groups
        self.take_form(form or self.sniff_form())

    def __len__(self) -> int:
        return len(self.paths)

    def content(self, index: int) -> bytes:
        path = self.root / self.paths[index]
        if not path.is_file():
            raise FileNotFoundError("there is no such file")
        if not self.reading.follow_links and path.is_symlink():
            raise FileNotFoundError(f"it is a symbolic link ({FOLLOWED})")
        return read_file(path, self.reading)

    def sample_name(self, index: int) -> str:
        return self.paths[index]

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for path in self.paths:
            try:
                size = os.stat(self.root / path).st_size
            except OSError:
                size = -1
            digest.update(f"{path}\0{size}\0".encode(errors="surrogateescape"))
        if self.groups is not None:
            digest.update(self.groups.numpy().tobytes())
        return digest.hexdigest()[:16]


def read_file(path: Path, reading: Reading) -> bytes:
    """The bytes of a file.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is larger than any image that may be decoded.
    """
    with open(path, "rb", buffering=0) as file:
        return limited(file, reading, size=os.fstat(file.fileno()).st_size)


def limited(file: IO[bytes] | BufferedIOBase, reading: Reading, *, size: int | None = None) -> bytes:
    """The bytes of an open file, of this size if it is known; ValueError if decoding may not take so many."""
    # a reader asked for more than there is takes that much memory first
    content = file.read(1 + (reading.max_memory if size is None else min(size, reading.max_memory)))
    if len(content) > reading.max_memory:
        raise ValueError(f"its file has more than reading.max_memory = {reading.max_memory:,} bytes")
    return content
