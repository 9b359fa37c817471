"""From a folder of images to tar shards in a random order, with what `ShardSource` reads them by."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from moco import chance
from moco.data.header import sniff
from moco.data.shard_table import BLOCK, RECORD, SAMPLES, SHARDS, UNFINISHED, ShardTable
from moco.files import held


@dataclass(frozen=True)
class Packed:
    """What `pack` made.

    Attributes:
        images, shards, bytes: how many.
        skipped: files that could not be read, with the reason.
    """

    images: int
    shards: int
    bytes: int
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class Member:
    """One image file to pack: its ending with the dot, its content, and its class or -1."""

    ending: str
    content: bytes
    label: int = -1


def pack(
    read: Callable[[int], Member],
    count: int,
    out: Path,
    *,
    classes: tuple[str, ...] = (),
    shard_images: int = 10_000,
    seed: int = 0,
    workers: int = 2,
    progress: Callable[[int], None] = lambda _: None,
) -> Packed:
    """Write images, in a keyed random order, as tar shards in WebDataset's form.

    The order is random once, so that even neighbours of one shard have nothing in common. The tables
    come last: a folder without them is an unfinished one, and the same call starts it anew.

    Args:
        read: gives the image of a number below `count`; RuntimeError skips it.
        count: number of images.
        out: a new or empty folder, or an unfinished one.
        classes: names of the classes.
        shard_images: images per shard.
        seed: keys the order.
        workers: reading threads.
        progress: told how many images have passed.

    Raises:
        FileExistsError: if the folder holds anything else, or another process is packing into it.
        ValueError: if a shard is to hold no image.
    """
    if shard_images < 1:
        raise ValueError(f"shard_images must be at least 1 image, got {shard_images}")
    if out.exists() and any(out.iterdir()) and not (out / UNFINISHED).exists():
        raise FileExistsError(f"{out} is not empty; choose another folder, nothing was overwritten")
    with held(out / UNFINISHED) as mine:
        if mine is None:
            raise FileExistsError(f"another process is packing into {out}")
        packed = _pack(read, count, out, classes, shard_images, seed, workers, progress)
        (out / UNFINISHED).unlink()
    return packed


def _pack(
    read: Callable[[int], Member],
    count: int,
    out: Path,
    classes: tuple[str, ...],
    shard_images: int,
    seed: int,
    workers: int,
    progress: Callable[[int], None],
) -> Packed:
    """All shards of a folder, then its tables."""
    for old in (*out.glob("shard-*.tar*"), out / SHARDS, out / SAMPLES):
        old.unlink(missing_ok=True)
    names: list[bytes] = []
    samples: list[int] = []
    sizes: list[int] = []
    digests: list[str] = []
    skipped: list[str] = []
    aside = out / f"{SAMPLES}.tmp"
    with open(aside, "wb") as index, ThreadPoolExecutor(workers) as pool:
        for start in range(0, count, shard_images):
            order = chance.permute(
                np.arange(start, min(start + shard_images, count)), count, seed, "pack"
            ).tolist()
            members = _in_order(pool, read, order, skipped)
            name = f"shard-{len(names):06d}.tar"
            records, size, digest = _write_shard(out / name, members, start, progress)
            if not len(records):
                (out / name).unlink()
                continue
            index.write(records.tobytes())
            names.append(name.encode())
            samples.append(len(records))
            sizes.append(size)
            digests.append(digest)
            progress(start + len(order))
        index.flush()
        os.fsync(index.fileno())
    aside.replace(out / SAMPLES)
    table = ShardTable(np.array(names), np.array(samples), np.array(sizes), classes)
    table.write(out, digests)
    return Packed(sum(samples), len(names), sum(sizes), tuple(skipped))


def _in_order(
    pool: ThreadPoolExecutor, read: Callable[[int], Member], order: list[int], skipped: list[str]
) -> Iterator[Member]:
    """Members of these numbers, read ahead by threads."""

    def attempt(number: int) -> Member | RuntimeError:
        try:
            return read(number)
        except RuntimeError as error:
            return error

    for start in range(0, len(order), 256):
        for member in pool.map(attempt, order[start : start + 256]):
            if isinstance(member, Member):
                yield member
            else:
                skipped.append(str(member))


def _write_shard(
    path: Path, members: Iterator[Member], first: int, progress: Callable[[int], None]
) -> tuple[np.ndarray, int, str]:
    """One tar file, written aside, synced and renamed: its records, length and SHA-256."""
    aside = path.with_suffix(".tar.tmp")
    records: list[tuple[int, int, int]] = []
    with open(aside, "wb") as file:
        hashing = _Hashing(file)
        with tarfile.open(fileobj=hashing, mode="w|", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
            for member in members:
                key = f"{first + len(records):09d}"
                start = _add(tar, key + member.ending, member.content)
                records.append((start // BLOCK, len(member.content), member.label))
                if member.label >= 0:
                    _add(tar, key + ".cls", str(member.label).encode())
                if len(records) % 1000 == 0:
                    progress(first + len(records))
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    return np.array(records, RECORD), path.stat().st_size, hashing.digest.hexdigest()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Append a member; where its content starts."""
    about = tarfile.TarInfo(name)
    about.size = len(content)
    tar.addfile(about, io.BytesIO(content))
    return tar.offset - -(-len(content) // BLOCK) * BLOCK


class _Hashing:
    """A file that digests what is written to it."""

    def __init__(self, file: IO[bytes]):
        self.file, self.digest = file, hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        return self.file.write(content)


class Small(NamedTuple):
    """What `smaller` makes of an image file.

    Attributes:
        content: of the file.
        ending: of its name, with the dot.
        left: whether it is still larger than asked for.
    """

    content: bytes
    ending: str
    left: bool = False


def smaller(content: bytes, ending: str, short_side: int, name: str) -> Small:
    """An image file whose short side is at most so many pixels: itself, or resized and encoded anew.

    Only 8-bit grey and RGB are resized; photographs (.jpg, .jpeg, .webp) become JPEG of quality 95, others
    PNG. Deep and floating-point images, palettes, transparency, CMYK and other channels are left as they
    are: 8-bit RGB would not hold them, or reading it would give other pixels.

    Raises:
        RuntimeError: if it cannot be decoded.
    """
    if (header := sniff(content)) is None:
        raise RuntimeError(f"{name}: no image of a known format, or cut off in its header")
    large = min(header.width, header.height) > short_side
    if header.depth != 8 or header.alpha or header.channels not in (1, 3):
        return Small(content, ending, large)
    try:
        with Image.open(io.BytesIO(content)) as opened:
            plain = opened.mode in ("L", "RGB") and "transparency" not in opened.info
            if not (plain and large):
                opened.load()
                return Small(content, ending, large)
            image = ImageOps.exif_transpose(opened)
            scale = short_side / min(image.size)
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            resized = image.resize(size, Image.Resampling.LANCZOS)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RuntimeError(f"{name}: {error}") from error
    buffer = io.BytesIO()
    lossy = ending in (".jpg", ".jpeg", ".webp")
    resized.save(buffer, "JPEG" if lossy else "PNG", **({"quality": 95} if lossy else {}))
    return Small(buffer.getvalue(), ".jpg" if lossy else ".png")


def verify(folder: Path, progress: Callable[[int], None] = lambda _: None) -> list[str]:
    """The shards of a folder whose content is not what was packed, with the reason.

    Raises:
        ValueError: if the table of the folder is damaged.
    """
    damaged = []
    with open(folder / SHARDS, encoding="utf-8") as table:
        json.loads(table.readline().removeprefix("#"))
        for number, line in enumerate(table):
            name, _, size, digest = line.rstrip("\n").split("\t")
            path = folder / name
            if not path.exists():
                damaged.append(f"{name}: missing")
            elif path.stat().st_size != int(size):
                damaged.append(f"{name}: {path.stat().st_size:,} bytes of {int(size):,}")
            elif digest != "-":
                with open(path, "rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                        damaged.append(f"{name}: its checksum does not match its content")
            progress(number + 1)
    return damaged
