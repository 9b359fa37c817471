"""The scan behind an index: which files a folder holds, and their headers, by several processes."""

import os
import pickle
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from moco.data.header import FIRST, FORMATS, Header, sniff, sniff_many

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
RECORD = np.dtype([("size", "<i8"), ("mtime", "<i8"), ("end", "<u8"), ("width", "<u4"), ("height", "<u4"),
                   ("format", "u1"), ("channels", "u1"), ("depth", "u1"), ("alpha", "?")])  # fmt: skip
"""One file: bytes, modification time (ns), where its name ends among its folder's, and its header."""
_CHUNK = 2_000  # files per task
_FEW = 10  # tasks that this process does itself
_SETTLED = 2_000_000_000  # ns; a folder changed later than this before its scan is read again next time

Progress = Callable[[int], None]
Task = tuple[str, bytes]  # a folder's path and names of files in it, parted by zero bytes


@dataclass
class Folder:
    """One folder below the root: its time, its images, and how many entries were skipped and why."""

    path: str
    mtime: int
    records: np.ndarray
    names: bytes
    skipped: dict[str, int]


def scan(
    root: str, follow_links: bool, old: dict[str, Folder], progress: Progress | None = None
) -> list[Folder]:
    """All folders below the root in the order of their paths; headers of unchanged ones are the old ones'.

    Each folder is visited once, however many links lead to it; names that begin with a dot and run
    folders are left out.
    """
    found: dict[str, Folder] = {}
    pending, seen = [""], set[tuple[int, int]]()
    with _Readers(root) as readers:
        while pending:
            path = pending.pop()
            try:
                status = os.stat(os.path.join(root, path))
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                folder = Folder(path, status.st_mtime_ns, np.empty(0, RECORD), b"", {})
                names, below = _entries(root, folder, follow_links)
            except OSError as error:
                found[path] = Folder(
                    path, 0, np.empty(0, RECORD), b"", {f"folders that cannot be read ({error.strerror})": 1}
                )
                continue
            if names is None:
                continue
            found[path] = folder
            pending += below
            if path in old and old[path].mtime == folder.mtime:
                folder.records, folder.names = old[path].records, old[path].names
            else:
                for i in range(0, len(names), _CHUNK):
                    readers.submit((path, b"\0".join(names[i : i + _CHUNK])))
            if time.time_ns() - folder.mtime < _SETTLED:
                folder.mtime = 0
        parts: dict[str, list[tuple[np.ndarray, bytes]]] = {}
        done = 0
        for path, records, names_read in readers.results():
            parts.setdefault(path, []).append((records, names_read))
            done += len(records)
            if progress is not None:
                progress(done)
    for path, pieces in parts.items():
        records = np.concatenate([records for records, _ in pieces])
        records["end"] = np.cumsum(records["end"])
        found[path].records, found[path].names = records, b"".join(names for _, names in pieces)
    return [found[path] for path in sorted(found)]


def _entries(root: str, folder: Folder, follow_links: bool) -> tuple[list[bytes] | None, list[str]]:
    """Names of image files in a folder, and paths of the folders in it; None for a run folder."""
    names, below, skipped = [], [], Counter[str]()
    with os.scandir(os.path.join(root, folder.path)) as opened:
        for entry in opened:
            name = entry.name
            if name == "recipe.toml" and folder.path:
                return None, []
            if name.startswith("."):
                skipped["names that begin with a dot"] += 1
            elif entry.is_symlink() and not follow_links:
                skipped["symbolic links (--reading.follow-links)"] += 1
            elif entry.is_dir():
                below.append(f"{folder.path}/{name}" if folder.path else name)
            elif not name.lower().endswith(EXTENSIONS):
                skipped["files without an image's ending"] += 1
            elif entry.is_file():
                names.append(name)
            else:
                skipped["neither files nor folders"] += 1
    folder.skipped = dict(skipped)
    return sorted(map(os.fsencode, names)), below


def _headers(root: str, task: Task) -> tuple[np.ndarray, bytes]:
    """Records of one task's files, with the length of each name for its end, and the names."""
    folder, names = task[0], task[1].split(b"\0")
    first = np.zeros((len(names), FIRST), np.uint8)
    whole = memoryview(first.reshape(-1).data)
    lengths, sizes, times = (np.zeros(len(names), np.int64) for _ in range(3))
    records = np.zeros(len(names), RECORD)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)  # a pipe that took a file's place must not hang us
    where = os.open(os.path.join(root, folder), os.O_RDONLY)
    try:
        for number, name in enumerate(names):
            try:
                file = os.open(name, flags, dir_fd=where)
            except OSError:  # it stays in the index, and is unreadable later on
                continue
            try:
                status = os.fstat(file)
                if stat.S_ISREG(status.st_mode):
                    sizes[number], times[number] = status.st_size, status.st_mtime_ns
                    lengths[number] = os.readv(file, [whole[number * FIRST : (number + 1) * FIRST]])
            except OSError:
                pass
            finally:
                os.close(file)
        known, values = sniff_many(first, lengths)
        for number in np.flatnonzero(~known & (lengths > 0)).tolist():
            header = _one(names[number], where, flags, bytes(first[number, : lengths[number]]))
            if header is not None:
                kind, width, height, channels, depth, alpha, _ = header
                values[number] = FORMATS.index(kind), width, height, min(channels, 255), depth, alpha
    finally:
        os.close(where)
    records["size"], records["mtime"], records["end"] = sizes, times, [len(name) for name in names]
    for column, field in enumerate(("format", "width", "height", "channels", "depth", "alpha")):
        records[field] = values[:, column].clip(0, 2**32 - 1)
    return records, b"".join(names)


def _one(name: bytes, where: int, flags: int, first: bytes) -> Header | None:
    """The header of a file that needs more than its first bytes."""
    try:
        file = os.open(name, flags, dir_fd=where)
    except OSError:
        return None
    try:
        return sniff(first, partial(_at, file))
    finally:
        os.close(file)


def _at(file: int, offset: int, count: int) -> bytes:
    return os.pread(file, count, offset)


class _Readers:
    """Read headers while folders are still being listed; many tasks go to fresh processes.

    These know nothing of this process, nor of a user's main script.
    """

    def __init__(self, root: str):
        self.root, self.tasks = root, list[Task]()
        self.pool: ThreadPoolExecutor | None = None
        self.futures: list[Future[tuple[np.ndarray, bytes]]] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.own = threading.local()

    def __enter__(self) -> "_Readers":
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.processes:
            process.kill()
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
        for process in self.processes:
            process.communicate()

    def submit(self, task: Task) -> None:
        """Have a task's headers read."""
        self.tasks.append(task)
        if self.pool is None and len(self.tasks) > _FEW and (os.cpu_count() or 1) > 1:
            self.pool = ThreadPoolExecutor(min(os.cpu_count() or 1, 16))
        if self.pool is not None:
            waiting = self.tasks[len(self.futures) :]
            self.futures += [self.pool.submit(self._elsewhere, task) for task in waiting]

    def results(self) -> Iterator[tuple[str, np.ndarray, bytes]]:
        """Yield folder, records and names of each task, in order."""
        for number, task in enumerate(self.tasks):
            if not self.futures:
                yield task[0], *_headers(self.root, task)
                continue
            yield task[0], *self.futures[number].result()
            self.futures[number] = Future()  # its memory is free
            self.tasks[number] = (task[0], b"")

    def _elsewhere(self, task: Task) -> tuple[np.ndarray, bytes]:
        """Send a task to this thread's process and wait for its answer."""
        if not hasattr(self.own, "process"):
            command = [sys.executable, "-c", "from moco.data.scan import _serve; _serve()"]
            path = os.pathsep.join(filter(None, sys.path))
            environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
            pipe = subprocess.PIPE
            self.own.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment)
            self.processes.append(self.own.process)
        try:
            _send(self.own.process.stdin, (self.root, task))
            return pickle.load(self.own.process.stdout)  # from a process of our own
        except (EOFError, OSError, pickle.UnpicklingError):  # that process is gone
            return _headers(self.root, task)


def _serve() -> None:
    """What a process of `_Readers` does until its input ends."""
    while True:
        try:
            root, task = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        _send(sys.stdout.buffer, _headers(root, task))


def _send(pipe: Any, value: Any) -> None:
    pickle.dump(value, pipe, protocol=5)
    pipe.flush()
