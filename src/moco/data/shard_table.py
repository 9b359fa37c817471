"""The two small files beside tar shards, `shards.tsv` and `samples.idx`: read, and made for shards without.

shards.tsv    one line for each shard: name, samples, bytes, SHA-256 ("-" if unknown)
samples.idx   twelve bytes for each sample: where its image starts (in tar blocks), its length, its class
"""

import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moco.data.scan import EXTENSIONS

RECORD = np.dtype([("block", "<u4"), ("length", "<u4"), ("label", "<i4")])
BLOCK = 512  # bytes; tar members start at multiples of it
SHARDS, SAMPLES = "shards.tsv", "samples.idx"
UNFINISHED = ".packing"
"""Stands in a folder of shards until all are written."""
_MOST_CLASSES = 1_000_000


@dataclass(frozen=True)
class ShardTable:
    """What `shards.tsv` says.

    Attributes:
        names, samples, sizes: of each shard: its file, how many samples it has, and bytes.
        classes: names of the classes.
        note: what the user should read before a run, or "".
    """

    names: np.ndarray
    samples: np.ndarray
    sizes: np.ndarray
    classes: tuple[str, ...] = ()
    note: str = ""

    def write(self, folder: Path, digests: list[str]) -> None:
        """Write the table; it comes last, so a folder that has one is whole."""
        rows = zip(self.names.tolist(), self.samples.tolist(), self.sizes.tolist(), digests, strict=True)
        lines = [f"# {json.dumps({'format': 1, 'classes': self.classes, 'note': self.note})}\n"]
        lines += [f"{name.decode()}\t{n}\t{size}\t{digest}\n" for name, n, size, digest in rows]
        aside = folder / f"{SHARDS}.{os.getpid()}.tmp"
        aside.write_text("".join(lines), encoding="utf-8")
        aside.replace(folder / SHARDS)


def read_table(folder: Path) -> ShardTable:
    """The table of a folder of shards.

    Raises:
        ValueError: if it is none of ours.
    """
    names, samples, sizes = [], [], []
    try:
        with open(folder / SHARDS, encoding="utf-8") as file:
            about = json.loads(file.readline().removeprefix("#"))
            for line in file:
                name, count, size, _ = line.rstrip("\n").split("\t")
                names.append(name.encode())
                samples.append(int(count))
                sizes.append(int(size))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{folder / SHARDS} is damaged ({error}); delete it to index the shards anew"
        ) from None
    classes, note = tuple(about["classes"]), about.get("note", "")
    return ShardTable(np.array(names), np.array(samples), np.array(sizes), classes, note)


def has_shards(folder: Path) -> bool:
    """Whether a folder holds tar shards: their table, or tar files beside neither images nor folders.

    Names that begin with a dot do not count.
    """
    if (folder / SHARDS).exists():
        return True
    found = False
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.lower().endswith(EXTENSIONS) or entry.is_dir():
                return False
            found = found or entry.name.endswith(".tar")
    return found


def tar_files(folder: Path) -> list[Path]:
    """The tar files of a folder by name; names that begin with a dot do not count."""
    return sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))


def index_shards(folder: Path) -> None:
    """Index shards that came without: read the headers of every tar file and write both files.

    Raises:
        FileNotFoundError: if no image is in them.
        ValueError: if the folder cannot be written to, its packing did not finish, or a shard is broken.
    """
    if (folder / UNFINISHED).exists():
        raise ValueError(f"the packing of {folder} did not finish; give the same moco pack command again")
    names, samples, sizes = [], [], []
    classes: set[int] = set()
    aside = folder / f"{SAMPLES}.{os.getpid()}.tmp"
    broken, second, example = [], 0, ""
    try:
        with open(aside, "wb") as index:
            for path in tar_files(folder):
                try:
                    records, others = shard_records(path)
                except (tarfile.TarError, OSError, ValueError) as error:
                    broken.append(f"{path.name} ({error})")
                    continue
                index.write(records.tobytes())
                second += len(others)
                example = example or next(iter(others), "")
                classes |= set(np.unique(records["label"]).tolist())
                names.append(path.name.encode())
                samples.append(len(records))
                sizes.append(path.stat().st_size)
    except OSError as error:
        raise ValueError(f"{folder} must be writable once, for the index of its shards: {error}") from error
    if broken:
        aside.unlink()
        raise ValueError(
            f"{len(broken)} of {len(broken) + len(names)} shards cannot be indexed: {'; '.join(broken[:3])}; "
            "restore them or move them away"
        )
    if not sum(samples):
        aside.unlink()
        raise FileNotFoundError(f"no image in the tar files of {folder} (looked for {', '.join(EXTENSIONS)})")
    aside.replace(folder / SAMPLES)
    labels = tuple(str(c) for c in range(max(classes) + 1))
    note = (
        f"{second:,} images in shards are left out: the name of a sample ends at its first dot, and they "
        f"have that of an earlier image, such as {example}"
        if second
        else ""
    )
    table = ShardTable(np.array(names), np.array(samples), np.array(sizes), labels, note)
    table.write(folder, ["-"] * len(names))


def shard_records(path: Path) -> tuple[np.ndarray, list[str]]:
    """The index records of one tar file, in the order of its samples; and the images that are no sample's
    first, each beside the first and with the name of the file.

    Raises:
        tarfile.TarError: if it is no tar file or is cut short.
    """
    images: dict[str, list[int]] = {}
    labels: dict[str, int] = {}
    firsts: dict[str, str] = {}
    second: list[str] = []
    end = 0
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            end = member.offset_data + member.size
            if not member.isfile():
                continue
            name = member.name.removeprefix("./")
            folder, _, last = name.rpartition("/")
            if last.startswith("."):  # macOS keeps a file's attributes in ._FILE
                continue
            stem, _, kind = last.partition(".")
            key = f"{folder}/{stem}"
            if f".{kind.lower()}".endswith(EXTENSIONS):
                if key in images:
                    second.append(f"{firsts[key]} and {name} of {path.name}")
                    continue
                images[key] = [member.offset_data // BLOCK, member.size]
                firsts[key] = name
            elif kind == "cls":
                content = tar.extractfile(member)
                assert content is not None
                labels[key] = _class(content.read(), name)
    if end > path.stat().st_size:
        raise tarfile.ReadError("it is cut short")
    return np.array([(*place, labels.get(key, -1)) for key, place in images.items()], RECORD), second


def _class(content: bytes, name: str) -> int:
    """What a .cls member says; -1 is no class.

    Raises:
        ValueError: if it is not the number of a class.
    """
    said = content[:40].decode(errors="replace").strip()
    if said == "-1":
        return -1
    if not said.isdecimal() or int(said) >= _MOST_CLASSES:
        raise ValueError(
            f"{name} must hold the number of a class, from 0, below {_MOST_CLASSES:,}, got {said!r}; number "
            "the classes, or leave the .cls files out"
        )
    return int(said)
