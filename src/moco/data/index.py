"""The index of a folder: the names of all its image files, found once and kept.

The names lie in one file of the user's cache, memory-mapped when it is opened again. A folder whose own
time has not changed is not read again; a file rewritten in place under its old name is not noticed.
Headers are read of as many files as take no time, evenly spaced.
"""

import contextlib
import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moco.data.scan import Folder, headers, scan

KEPT_FROM = 10_000  # files; smaller folders are scanned anew, in less than a second
HEADERS = 10_000  # files whose headers say what form the images have; all of smaller sets
_VERSION = 3


@dataclass(frozen=True)
class FileIndex:
    """Image files below a root, folders in the order of their names and files likewise.

    Attributes:
        root: of all paths.
        folders: paths of the folders that hold images, with forward slashes; "" is the root.
        starts: (folders + 1,) number of each folder's first image.
        ends: (images,) where each name ends among all names.
        names: all file names in one, as the file system has them.
        forms: number of images of each (channels, depth, alpha), among `HEADERS` evenly spaced ones.
        sizes: a digest of the sizes of these.
        skipped: entries that are no images of this set, by reason.
    """

    root: str
    folders: list[str]
    starts: np.ndarray
    ends: np.ndarray
    names: Any
    forms: dict[tuple[int, int, bool], int]
    sizes: str
    skipped: dict[str, int]

    def __len__(self) -> int:
        return len(self.ends)

    def path(self, number: int) -> str:
        """Path of an image below the root."""
        folder = self.folders[int(np.searchsorted(self.starts, number, side="right")) - 1]
        name = os.fsdecode(self._name(number))
        return f"{folder}/{name}" if folder else name

    def _name(self, number: int) -> bytes:
        start = int(self.ends[number - 1]) if number else 0
        return bytes(self.names[start : int(self.ends[number])])

    def fingerprint(self) -> str:
        """A digest of all paths, and of the sizes of the files whose headers were read."""
        digest = hashlib.sha256("\0".join(self.folders).encode(errors="surrogateescape"))
        for array in self.starts, self.ends, self.names:
            digest.update(np.ascontiguousarray(array).data)
        digest.update(self.sizes.encode())
        return digest.hexdigest()[:16]


def open_index(root: str | Path, *, follow_links: bool = False) -> FileIndex:
    """The index of a folder, from the cache where that is current.

    Each folder is visited once, however many links lead to it; names that begin with a dot and run
    folders are left out, and links are not followed unless asked for.

    Args:
        root: the folder.
        follow_links: follow symbolic links, wherever they lead.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    if not os.path.isdir(root):
        raise FileNotFoundError(f"there is no folder {root}")
    cache = _cache_file(os.path.realpath(root), follow_links)
    known, index = _load(cache)
    if index is not None and all(_time(index.root, folder) == mtime for folder, mtime in known.items()):
        return index
    folders = scan(os.path.realpath(root), follow_links)
    times = {folder.path: folder.mtime for folder in folders}
    index = _joined(os.path.realpath(root), folders)
    if len(index) >= KEPT_FROM:
        with contextlib.suppress(OSError):
            _store(cache, index, times)
    return index


def _joined(root: str, folders: list[Folder]) -> FileIndex:
    skipped: Counter[str] = Counter()
    for folder in folders:
        skipped.update(folder.skipped)
    filled = [folder for folder in folders if len(folder.ends)]
    starts = np.concatenate([[0], np.cumsum([len(f.ends) for f in filled])]).astype(np.int64)
    before = np.cumsum([0] + [len(f.names) for f in filled]).astype(np.uint64)
    ends = [f.ends + first for f, first in zip(filled, before, strict=False)]
    index = FileIndex(
        root, [f.path for f in filled], starts, np.concatenate([*ends, np.empty(0, np.uint64)]),
        np.frombuffer(b"".join(f.names for f in filled), np.uint8), {}, "", dict(skipped),
    )  # fmt: skip
    looked_at = np.unique(np.linspace(0, len(index) - 1, min(HEADERS, len(index))).astype(int))
    forms, sizes = headers(root, (index.path(int(number)) for number in looked_at))
    return replace(index, forms=dict(forms), sizes=sizes)


def _cache_file(root: str, follow_links: bool) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    key = hashlib.sha256(f"{root}\0{follow_links}".encode(errors="surrogateescape")).hexdigest()[:24]
    return Path(home) / "moco" / f"{key}.index"


def _time(root: str, folder: str) -> int:
    try:
        return os.stat(os.path.join(root, folder)).st_mtime_ns
    except OSError:
        return -1


def _store(path: Path, index: FileIndex, times: dict[str, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "moco index": _VERSION, "root": index.root, "folders": index.folders, "starts": index.starts.tolist(),
        "forms": [[*form, count] for form, count in index.forms.items()], "sizes": index.sizes,
        "skipped": index.skipped, "times": times, "images": len(index), "names": len(index.names),
    }  # fmt: skip
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with open(aside, "wb") as file:
            file.write(json.dumps(about).encode() + b"\n")
            file.write(index.ends.data)
            file.write(index.names.data)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _load(path: Path) -> tuple[dict[str, int], FileIndex | None]:
    """The times of folders and the index of a cache file; nothing if it is absent or not whole."""
    try:
        with open(path, "rb") as file:
            about = json.loads(file.readline())
            start, size = file.tell(), os.fstat(file.fileno()).st_size
        split = start + 8 * about["images"]
        if about["moco index"] != _VERSION or size != split + about["names"]:
            return {}, None
        whole = np.memmap(path, np.uint8, mode="r", offset=0)
        forms = {(channels, depth, alpha): count for channels, depth, alpha, count in about["forms"]}
        index = FileIndex(
            about["root"], about["folders"], np.array(about["starts"], np.int64),
            whole[start:split].view(np.uint64), whole[split:], forms, about["sizes"], about["skipped"],
        )  # fmt: skip
        return about["times"], index
    except (OSError, ValueError, KeyError, TypeError):
        return {}, None
