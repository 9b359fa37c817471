"""What is in a set of images, before anything is trained on it: every file decoded, and what it is told."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moco.data.decode import check
from moco.data.duplicates import digest, exact, miniatures, near
from moco.data.encoded import EncodedSource, FolderSource, Opened
from moco.data.header import sniff
from moco.data.remarks import remarks
from moco.data.scan import EXTENSIONS, OURS
from moco.data.source import Source
from moco.data.statistics import Sums, sums
from moco.data.unreadable import Unreadable
from moco.words import some

NEAR_LIMIT = 60_000  # images among which near duplicates are sought
TINY, EXTREME = 16, 10.0  # pixels of the shorter side; longer side over shorter
_AHEAD = 256

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Looked:
    """What was seen of one image.

    Attributes:
        name: what lists call it.
        reason: why it cannot be read; empty if it can.
        remarks: what is out of the ordinary, and what was done with it.
        digest: of its bytes; empty if they cannot be had.
        small: miniatures to compare, where it can be read.
        extent: height and width, pixels.
        sums: of its pixels.
    """

    name: str
    reason: str
    remarks: tuple[str, ...]
    digest: str
    small: Tensor | None
    extent: tuple[int, int]
    sums: Sums | None


def look(source: Source, index: int, *, compare: bool = True) -> Looked:
    """Decode an image and note what there is to say; with `compare` its miniatures too."""
    name, notes, same = source.sample_name(index), [], ""
    try:
        if isinstance(source, EncodedSource):
            content = _content(source, index)
            same = "" if content is None else digest(content)
            header = check(content, name, source.reading) if content else None
            opened = Opened(content, header, name) if content and header else source.open(index)
            with source.room(opened):
                notes = remarks(name, opened.content, opened.header, source.form, source.reading)
                return _looked(name, notes, same, source.decode(opened), compare)
        image = source.read(index)
        return _looked(name, notes, digest(image.contiguous().numpy().tobytes()), image, compare)
    except Unreadable as error:
        return Looked(name, error.reason, (), same, None, (0, 0), None)


def _looked(name: str, notes: list[str], same: str, image: Tensor, compare: bool) -> Looked:
    height, width = image.shape[1:]
    if min(height, width) < TINY:
        notes.append("tiny")
    if max(height, width) > EXTREME * min(height, width):
        notes.append("extreme shape")
    found = sums(image)
    if torch.equal(found.least, found.most):
        notes.append("constant: every pixel is the same")
    small = miniatures(image) if compare else None
    return Looked(name, "", tuple(notes), same, small, (height, width), found)


def _content(source: EncodedSource, index: int) -> bytes | None:
    try:
        return source.content(index)
    except (OSError, ValueError):
        return None  # `open` says why


def look_at_all(source: Source, workers: int, progress: Progress | None = None) -> list[Looked]:
    """`look` at every image, in order, by threads."""
    found: list[Looked] = []
    compare = len(source) <= NEAR_LIMIT
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(source), _AHEAD):
            stop = min(start + _AHEAD, len(source))
            found += pool.map(lambda i: look(source, i, compare=compare), range(start, stop))
            if progress is not None:
                progress(stop, len(source))
    return found


def report(
    source: Source, against: Source | None = None, *, workers: int = 2, progress: Progress | None = None
) -> dict[str, Any]:
    """Everything `moco doctor` tells, as JSON values.

    Args:
        source: the images.
        against: test images that should not be among them.
        workers: decoding threads.
        progress: told how many of how many images have been looked at.
    """
    seen = look_at_all(source, workers, progress)
    good = [one for one in seen if not one.reason]
    told: dict[str, list[str]] = {}
    for one in good:
        for remark in one.remarks:
            told.setdefault(remark, []).append(one.name)
    result: dict[str, Any] = {
        "images": len(seen), "readable": len(good), "channels": source.channels,
        "depth": str(source.dtype).removeprefix("torch."),
        "unreadable": {one.name: one.reason for one in seen if one.reason},
        "remarks": told,
        "skipped": dict(strays(source)) if isinstance(source, FolderSource) else {},
        "duplicates": _copies(seen, None, source.channels),
        "sizes": _sizes(good),
        "statistics": _statistics(good),
        "classes": _classes(source),
    }  # fmt: skip
    if against is not None:
        others = look_at_all(against, workers, progress)
        result["leakage"] = {"against": against.name, "images": len(others)}
        if against.channels == source.channels:
            result["leakage"] |= _copies(seen, others, source.channels)
        else:
            result["leakage"]["not compared"] = f"they have {some(against.channels, 'channel')}"
    return result


def strays(source: FolderSource) -> Iterator[tuple[str, str]]:
    """Entries of a folder that are no images of the set, and why."""
    root = os.path.realpath(source.root)
    for folder, below, names in os.walk(root, followlinks=False):
        inside = os.path.relpath(folder, root)
        here = "" if inside == "." else inside + "/"
        if not below and not names:
            yield here.rstrip("/") + "/", "an empty folder"
        for name in list(below):
            path = os.path.join(folder, name)
            if name.startswith("."):
                below.remove(name)
                yield f"{here}{name}/", "its name begins with a dot"
            elif os.path.islink(path) and not source.follows:
                yield f"{here}{name}", "a symbolic link"
            elif any(os.path.isfile(os.path.join(path, os.fsdecode(mark))) for mark in OURS):
                below.remove(name)
                yield f"{here}{name}/", "a folder of a run, a study or a doctor's report"
            elif name.lower().endswith(EXTENSIONS):
                yield f"{here}{name}/", "a folder with an image's name"
        for name in names:
            path = os.path.join(folder, name)
            if name.startswith("."):
                yield here + name, "its name begins with a dot"
            elif os.path.islink(path) and not source.follows:
                yield here + name, "a symbolic link"
            elif not os.path.isfile(path):
                yield here + name, "neither file nor folder"
            elif not name.lower().endswith(EXTENSIONS):
                yield here + name, _without_ending(path)


def _without_ending(path: str) -> str:
    """What a file is that has no image's ending."""
    try:
        with open(path, "rb") as file:
            header = sniff(file.read(512))
    except OSError as error:
        return f"no image's ending, and it cannot be opened: {error.strerror}"
    return f"a {header.format} without an image's ending" if header else "no image's ending"


def _copies(seen: list[Looked], others: list[Looked] | None, channels: int) -> dict[str, Any]:
    """Exact and near duplicates by name; those that cannot be decoded count by their bytes, and
    those without any not at all."""
    bank = seen if others is None else others
    same = exact(_digests(seen, "of these"), None if others is None else _digests(others, "of the others"))
    pairs = (
        {(i, j) for group in same for i in group for j in group}
        if others is None
        else {tuple(p) for p in same}
    )
    result: dict[str, Any] = {
        "exact": [[seen[i].name for i in group] for group in same] if others is None
        else [[seen[i].name, bank[j].name] for i, j in same]
    }  # fmt: skip
    sides, stacks = [], []
    for part in seen, bank:
        small = [(i, one.small) for i, one in enumerate(part) if one.small is not None]
        sides.append([i for i, _ in small])
        stacks.append([miniature for _, miniature in small])
    if max(len(seen), len(bank)) > NEAR_LIMIT or not all(sides):
        return result | {"near": [], "near not sought": f"among more than {NEAR_LIMIT:,} images, or none"}
    whole = torch.stack(stacks[0])
    found = near(whole, None if others is None else torch.stack(stacks[1]), channels=channels)
    named = [(sides[0][p.first], sides[1][p.second], p.similarity) for p in found]
    return result | {"near": [[seen[i].name, bank[j].name, s] for i, j, s in named if (i, j) not in pairs]}


def _digests(part: list[Looked], which: str) -> list[str]:
    """The digest of each image; of one that has none a word that no other has."""
    return [one.digest or f"{i} {which}" for i, one in enumerate(part)]


def _sizes(good: list[Looked]) -> dict[str, Any]:
    if not good:
        return {}
    short = np.array([min(one.extent) for one in good])
    long = np.array([max(one.extent) for one in good])
    return {
        "shorter side": {
            "least": int(short.min()),
            "median": int(np.median(short)),
            "most": int(short.max()),
        },
        "longer side": {"least": int(long.min()), "median": int(np.median(long)), "most": int(long.max())},
    }


def _statistics(good: list[Looked]) -> dict[str, Any]:
    """Mean and deviation of each channel over all pixels, in the values of the set."""
    parts = [one.sums for one in good if one.sums is not None]
    if not parts:
        return {}
    count = sum(part.pixels for part in parts)
    mean = torch.stack([part.values for part in parts]).sum(0) / count
    square = torch.stack([part.squares for part in parts]).sum(0) / count
    std = (square - mean.square()).clamp(min=0).sqrt()
    return {"mean": [round(v, 5) for v in mean.tolist()], "std": [round(v, 5) for v in std.tolist()]}


def _classes(source: Source) -> dict[str, int]:
    if source.labels is None:
        return {}
    counts = torch.bincount(source.labels[source.labels >= 0], minlength=len(source.classes)).tolist()
    return dict(zip(source.classes, counts, strict=True))
