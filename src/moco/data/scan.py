"""The scan behind an index: which image files a folder holds, and what some of their headers say."""

import hashlib
import os
import stat
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from moco.data.header import FIRST, Header, sniff

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
_ENDINGS = tuple(map(str.encode, EXTENSIONS))
OURS = (b"recipe.toml", b"study.json", b"doctor.json")
"""What the folders hold that this package wrote: their pictures are no images of the set."""
FOLLOWED = (
    "followed by moco pretrain, plan and doctor with --reading.follow-links, and for runs that followed them"
)
LINKS = f"symbolic links ({FOLLOWED})"
"""Why links are skipped."""
_SETTLED = 2_000_000_000  # ns; a folder changed later than this before its scan is read again next time


@dataclass
class Folder:
    """One folder below the root: its time, its images, and how many entries were skipped and why.

    Attributes:
        path: below the root, with forward slashes.
        mtime: of the folder, ns; 0 if it is to be read again.
        names: of its images, in the order of their bytes, one after the other.
        ends: (images,) where each name ends.
        skipped: entries that are no images of this set, by reason.
    """

    path: str
    mtime: int
    names: bytes = b""
    ends: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    skipped: dict[str, int] = field(default_factory=dict)


def scan(root: str, follow_links: bool) -> list[Folder]:
    """All folders below the root in the order of their paths.

    Each folder is visited once, however many links lead to it; names that begin with a dot, and folders
    of runs, studies and doctor's reports, are left out. No file is opened, nor asked for anything.
    """
    found: dict[str, Folder] = {}
    pending, seen = [""], set[tuple[int, int]]()
    while pending:
        path = pending.pop()
        try:
            status = os.stat(os.path.join(root, path))
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = _entries(os.path.join(root, path), bool(path), follow_links)
        except OSError as error:
            found[path] = Folder(path, 0, skipped={f"folders that cannot be read ({error.strerror})": 1})
            continue
        if entries is None:
            continue
        names, below, skipped = entries
        pending += [f"{path}/{name}" if path else name for name in below]
        names.sort()
        ends = np.cumsum(np.fromiter(map(len, names), np.uint64, len(names)), dtype=np.uint64)
        settled = time.time_ns() - status.st_mtime_ns >= _SETTLED
        mtime = status.st_mtime_ns if settled else 0
        found[path] = Folder(path, mtime, b"".join(names), ends, dict(skipped))
    return [found[path] for path in sorted(found)]


def _entries(
    path: str, below_root: bool, follow_links: bool
) -> tuple[list[bytes], list[str], Counter[str]] | None:
    """Image files and folders in a folder, and what is skipped; None for a folder this package wrote."""
    names, below, skipped = list[bytes](), list[str](), Counter[str]()
    with os.scandir(os.fsencode(path)) as opened:
        for entry in opened:
            name = entry.name
            if name[0] == 46:  # a dot
                skipped["names that begin with a dot"] += 1
            elif entry.is_file(follow_symlinks=False):
                if name.endswith(_ENDINGS) or name.lower().endswith(_ENDINGS):
                    names.append(name)
                elif name in OURS and below_root:
                    return None
                else:
                    skipped["files without an image's ending"] += 1
            elif entry.is_symlink() and not follow_links:
                skipped[LINKS] += 1
            elif entry.is_dir():
                below.append(os.fsdecode(name))
            elif not name.lower().endswith(_ENDINGS):
                skipped["files without an image's ending"] += 1
            elif entry.is_file():
                names.append(name)
            else:
                skipped["neither files nor folders"] += 1
    return names, below, skipped


def headers(root: str, paths: Iterable[str]) -> tuple[Counter[tuple[int, int, bool]], str]:
    """What the headers of some files say: how many there are of each (channels, depth, alpha); and a
    digest of their sizes."""
    forms, sizes = Counter[tuple[int, int, bool]](), hashlib.sha256()
    for path in paths:
        size, header = _header(os.path.join(root, path))
        sizes.update(b"%d " % size)
        if header is not None:
            forms[min(header.channels, 255), header.depth, header.alpha] += 1
    return forms, sizes.hexdigest()[:16]


def _header(path: str) -> tuple[int, Header | None]:
    try:  # a pipe that took a file's place must not hang us
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError:  # it stays in the index, and is unreadable later on
        return -1, None
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            return -1, None
        return status.st_size, sniff(os.read(file, FIRST), partial(_at, file))
    except OSError:
        return -1, None
    finally:
        os.close(file)


def _at(file: int, offset: int, count: int) -> bytes:
    return os.pread(file, count, offset)
