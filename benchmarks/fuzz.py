"""Mutated image files through index, doctor and loader: nothing may crash, hang or eat the memory.

    python benchmarks/fuzz.py --files 10000

Prints how many could be read, the longest time of one file, the peak of memory beside that of the
imports alone, and which files raised it.
"""

import argparse
import io
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from moco.data.augmentation import Augmentation
from moco.data.doctor import look
from moco.data.encoded import FolderSource
from moco.data.header import sniff
from moco.data.loader import Loader
from moco.data.views import Views

KINDS = {"JPEG": "jpg", "PNG": "png", "TIFF": "tif", "WEBP": "webp"}


def seeds() -> list[tuple[str, bytes]]:
    """Small sound files of each kind, in several modes."""
    y, x = np.mgrid[0:48, 0:64]
    array = np.stack([(x * 4) % 256, (y * 5) % 256, (x * y) % 256], 2).astype(np.uint8)
    deep = (np.outer(np.arange(48), np.arange(64)) * 20).astype(np.uint16)
    found = []
    for kind, ending in KINDS.items():
        for mode in ("RGB", "L") if kind != "WEBP" else ("RGB", "RGBA"):
            buffer = io.BytesIO()
            Image.fromarray(array).convert(mode).save(buffer, kind)
            found.append((ending, buffer.getvalue()))
    for kind in "PNG", "TIFF":
        buffer = io.BytesIO()
        Image.fromarray(deep).save(buffer, kind)
        found.append((KINDS[kind], buffer.getvalue()))
    return found


def mutant(content: bytes, rng: np.random.Generator) -> bytes:
    """The file with bytes of its header changed, cut, repeated or moved."""
    data = bytearray(content)
    reach = min(len(data), int(rng.choice([32, 128, 512])))
    for _ in range(rng.integers(1, 6)):
        at, kind = int(rng.integers(reach)), rng.integers(6)
        if kind == 0:
            data[at % len(data)] = int(rng.integers(256))
        elif kind == 1:
            data[at % len(data)] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
        elif kind == 2:
            data[at : at + 4] = int(rng.integers(2**32)).to_bytes(4, "big")
        elif kind == 3:
            del data[at : at + int(rng.integers(1, 9))]
        elif kind == 4:
            data[at:at] = data[at : at + int(rng.integers(1, 33))]
        else:
            del data[int(rng.integers(len(data))) :]
        if not data:
            return b""
    return bytes(data)


class Mostly(Loader):
    """A loader whose replacements can be read, for a set in which most cannot."""

    sound = 0

    def replacement(self, step: int, index: int, attempt: int) -> int:
        return self.sound


def peak() -> int:
    """Most memory this process had, MB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Make the files and take them through."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, base = np.random.default_rng(arguments.seed), seeds()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(arguments.files):
            ending, content = base[i % len(base)]
            (Path(folder) / f"{i:06d}.{ending}").write_bytes(mutant(content, rng))
        begin = time.perf_counter()
        source = FolderSource(Path(folder))
        indexed = time.perf_counter() - begin
        longest, readable, imports = 0.0, 0, peak()
        raised: dict[str, int] = {}
        for i in range(len(source)):
            start, before = time.perf_counter(), peak()
            readable += not look(source, i).reason
            longest = max(longest, time.perf_counter() - start)
            if peak() > before + 8:
                raised[f"{source.sample_name(i)} {sniff(source.content(i))}"] = peak()
        looked = peak()
        views = Views(Augmentation(size=32, mean=(0.5,) * source.channels, std=(0.2,) * source.channels))
        sound = next(i for i in range(len(source)) if not look(source, i).reason)
        loader = Mostly(source, views, 50)
        loader.sound = sound
        met = sum(len(batch.unreadable) for batch in loader.stream(0, loader.steps_per_epoch))
    result = {
        "files": len(source), "readable": readable, "unreadable met by the loader": met,
        "index, s": round(indexed, 2), "longest file, s": round(longest, 2),
        "memory of the imports and the index, MB": imports, "peak of the doctor, MB": looked,
        "peak memory, MB": peak(), "raised by": raised,
    }  # fmt: skip
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
