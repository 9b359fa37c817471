"""The index of a folder: every image file with its size, time and header, found once and kept.

Large folders are scanned by several processes, and the result lies in one file of the user's cache,
memory-mapped when it is opened again. A folder whose own time has not changed is not read again;
a file rewritten in place under its old name shows only in a refreshed index.
"""

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moco.data.header import FORMATS, Header
from moco.data.scan import RECORD, Folder, Progress, scan

KEPT_FROM = 10_000  # files; smaller folders are scanned anew, in less than a second


@dataclass(frozen=True)
class FileIndex:
    """Image files below a root, folders in the order of their names and files likewise.

    Attributes:
        root: of all paths.
        folders: paths of the folders that hold images, with forward slashes; "" is the root.
        starts: (folders + 1,) number of each folder's first image.
        records: (images,) `RECORD`s.
        names: all file names in one, UTF-8.
        skipped: entries that are no images of this set, by reason.
    """

    root: str
    folders: list[str]
    starts: np.ndarray
    records: np.ndarray
    names: Any
    skipped: dict[str, int]

    def __len__(self) -> int:
        return len(self.records)

    def path(self, number: int) -> str:
        """Path of an image below the root."""
        start = int(self.records["end"][number - 1]) if number else 0
        name = os.fsdecode(bytes(self.names[start : int(self.records["end"][number])]))
        folder = self.folders[int(np.searchsorted(self.starts, number, side="right")) - 1]
        return f"{folder}/{name}" if folder else name

    def header(self, number: int) -> Header | None:
        """What the file said of itself when it was indexed."""
        record = self.records[number]
        if not record["format"]:
            return None
        width, height, channels, depth = (
            int(record[name]) for name in ("width", "height", "channels", "depth")
        )
        return Header(FORMATS[record["format"]], width, height, channels, depth, bool(record["alpha"]))

    def forms(self) -> dict[tuple[int, int, bool], int]:
        """Number of images of each (channels, depth, alpha)."""
        known = self.records[self.records["format"] > 0]
        code = known["channels"].astype(np.int64) * 512 + known["depth"].astype(np.int64) * 2 + known["alpha"]
        kinds, counts = np.unique(code, return_counts=True)
        return {
            (int(k) // 512, int(k) % 512 // 2, bool(k % 2)): int(n)
            for k, n in zip(kinds, counts, strict=True)
        }

    def fingerprint(self) -> str:
        """A digest of all paths and sizes."""
        digest = hashlib.sha256("\0".join(self.folders).encode(errors="surrogateescape"))
        for array in self.starts, self.records["end"], self.records["size"], self.names:
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]


def open_index(
    root: str | Path, *, follow_links: bool = False, refresh: bool = False, progress: Progress | None = None
) -> FileIndex:
    """The index of a folder, from the cache where that is current.

    Each folder is visited once, however many links lead to it; names that begin with a dot and run
    folders are left out, and links are not followed unless asked for.

    Args:
        root: the folder.
        follow_links: follow symbolic links, wherever they lead.
        refresh: scan everything anew.
        progress: told the number of files indexed so far.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    if not os.path.isdir(root):
        raise FileNotFoundError(f"there is no folder {root}")
    cache = _cache_file(os.path.realpath(root), follow_links)
    known, index = ({}, None) if refresh else _load(cache)
    if index is not None and all(_time(index.root, folder) == mtime for folder, mtime in known.items()):
        return index
    old = {} if index is None else dict(_parted(index, known))
    folders = scan(os.path.realpath(root), follow_links, old, progress)
    index = _joined(os.path.realpath(root), folders)
    if len(index) >= KEPT_FROM:
        with contextlib.suppress(OSError):
            _store(cache, index, folders)
    return index


def _joined(root: str, folders: Iterable[Folder]) -> FileIndex:
    folders = list(folders)
    skipped: Counter[str] = Counter()
    for folder in folders:
        skipped.update(folder.skipped)
    filled = [folder for folder in folders if len(folder.records)]
    starts = np.concatenate([[0], np.cumsum([len(f.records) for f in filled])]).astype(np.int64)
    records = np.concatenate([f.records for f in filled]) if filled else np.empty(0, RECORD)
    ends = np.cumsum([0] + [len(f.names) for f in filled])
    for number in range(len(filled)):
        records["end"][starts[number] : starts[number + 1]] += np.uint64(ends[number])
    names = np.frombuffer(b"".join(f.names for f in filled), np.uint8)
    for folder in filled:  # what a million files take is held once
        folder.records, folder.names = records[:0], b""
    return FileIndex(root, [f.path for f in filled], starts, records, names, dict(skipped))


def _parted(index: FileIndex, known: dict[str, int]) -> Iterable[tuple[str, Folder]]:
    """The folders an index was joined from."""
    for number, path in enumerate(index.folders):
        rows = slice(int(index.starts[number]), int(index.starts[number + 1]))
        records = np.array(index.records[rows])
        first = int(index.records["end"][rows.start - 1]) if rows.start else 0
        names = bytes(index.names[first : int(records["end"][-1])])
        records["end"] -= np.uint64(first)
        yield path, Folder(path, known.get(path, 0), records, names, {})


def _cache_file(root: str, follow_links: bool) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    key = hashlib.sha256(f"{root}\0{follow_links}".encode(errors="surrogateescape")).hexdigest()[:24]
    return Path(home) / "moco" / f"{key}.index"


def _time(root: str, folder: str) -> int:
    try:
        return os.stat(os.path.join(root, folder)).st_mtime_ns
    except OSError:
        return -1


def _store(path: Path, index: FileIndex, folders: list[Folder]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "moco index": 1, "root": index.root, "folders": index.folders, "starts": index.starts.tolist(),
        "skipped": index.skipped, "times": {f.path: f.mtime for f in folders},
        "records": len(index), "names": len(index.names),
    }  # fmt: skip
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with open(aside, "wb") as file:
            file.write(json.dumps(about).encode() + b"\n")
            file.write(index.records.view(np.uint8).data)
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
        count, names = about["records"], about["names"]
        if about["moco index"] != 1 or size != start + count * RECORD.itemsize + names:
            return {}, None
        whole = np.memmap(path, np.uint8, mode="r", offset=0)
        split = start + count * RECORD.itemsize
        index = FileIndex(
            about["root"], about["folders"], np.array(about["starts"], np.int64),
            whole[start:split].view(RECORD), whole[split:], about["skipped"],
        )  # fmt: skip
        return about["times"], index
    except (OSError, ValueError, KeyError, TypeError):
        return {}, None
