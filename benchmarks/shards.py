"""A million samples in shards: packing, start-up, order, coverage over processes and a resume, memory.

python benchmarks/shards.py [--samples 1000000] [--billion]
"""

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy import stats

from moco.data.augmentation import Augmentation
from moco.data.loader import Loader
from moco.data.pack import Member, pack
from moco.data.shard_table import RECORD, SAMPLES, ShardTable
from moco.data.shards import ShardSource
from moco.data.views import Views
from moco.world import Solo

VIEWS = Views(Augmentation(mean=(0.5,) * 3, std=(0.25,) * 3))


class Rank(Solo):
    """A process of several; what it loads needs no communication."""

    def __init__(self, rank: int, size: int):
        self._at = rank, size

    @property
    def rank(self) -> int:
        return self._at[0]

    @property
    def size(self) -> int:
        return self._at[1]


def memory() -> float:
    """The most this process has held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def coverage(source: ShardSource, window: int | None, batch: int) -> str:
    """Whether one epoch on 1, then 2, then 3 processes takes every sample once, and how random it is."""
    count = len(source)
    times, numbers = np.zeros(count, np.uint8), np.empty(count, np.int64)
    loaders = {
        size: [Loader(source, VIEWS, batch, world=Rank(r, size), window=window) for r in range(size)]
        for size in (1, 2, 3)
    }
    steps = loaders[1][0].steps_per_epoch
    for step in range(steps):  # the number of processes changes twice in the middle of the epoch
        size = 1 + 3 * step // steps
        taken = np.concatenate([loader.index(step) for loader in loaders[size]])
        times[taken] += 1
        numbers[step * batch : (step + 1) * batch] = taken
    seen = numbers[: steps * batch]
    table = np.zeros((50, 50))
    place = np.arange(len(seen)) * 50 // count
    np.add.at(table, (place, seen * 50 // count), 1)
    test = stats.chi2_contingency(table)
    return (
        f"{int((times == 1).sum()):,} samples once, {int((times > 1).sum())} twice, "
        f"{int((times == 0).sum())} not (the incomplete last batch: {count - steps * batch}); "
        f"chi-square of place against number {test.statistic:.0f} on {test.dof} degrees, p {test.pvalue:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--billion", action="store_true", help="only the index of 10^9 samples")
    call = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="moco-shards-"))
    try:
        billion(folder) if call.billion else million(folder, call.samples)
    finally:
        shutil.rmtree(folder)


def million(folder: Path, count: int) -> None:
    """Pack so many tiny samples and read them."""
    content = [bytes([i]) * 64 for i in range(256)]
    begun = time.perf_counter()
    packed = pack(lambda i: Member(".jpg", content[i % 256]), count, folder / "x", workers=1)
    seconds = time.perf_counter() - begun
    print(f"packed {packed.images:,} samples in {packed.shards} shards in {seconds:.0f} s", flush=True)
    code = (
        "import sys, time; from pathlib import Path; from moco.data.shards import ShardSource\n"
        "begun = time.perf_counter(); source = ShardSource(Path(sys.argv[1]))\n"
        "print(f'opened {len(source):,} samples in {time.perf_counter() - begun:.3f} s')"
    )
    subprocess.run([sys.executable, "-c", code, str(folder / "x")], check=True)
    source, before = ShardSource(folder / "x"), memory()
    for window in None, 16:
        print(f"window {window}: {coverage(source, window, 96)}", flush=True)
    reads = np.random.default_rng(0).integers(0, count, 100_000)
    begun = time.perf_counter()
    for i in reads.tolist():
        source.content(i)
    speed = len(reads) / (time.perf_counter() - begun)
    print(f"read at random: {speed:,.0f} samples/s; memory grew by {memory() - before:.0f} MiB in all")


def billion(folder: Path) -> None:
    """The index of 10^9 samples, sparse on disk: what a process holds."""
    shards, each = 100_000, 10_000
    names = np.array([f"shard-{i:06d}.tar".encode() for i in range(shards)])
    ShardTable(names, np.full(shards, each), np.zeros(shards, np.int64)).write(folder, ["-" * 64] * shards)
    with open(folder / SAMPLES, "wb") as file:
        file.truncate(10**9 * RECORD.itemsize)
    for i in range(shards):
        (folder / f"shard-{i:06d}.tar").touch()
    del names
    before, begun = memory(), time.perf_counter()
    source = ShardSource(folder)
    print(f"10^9 samples in {shards:,} shards: opened in {time.perf_counter() - begun:.1f} s")
    for window in None, 64:
        loader = Loader(source, VIEWS, 4096, world=Rank(7, 64), window=window)
        begun = time.perf_counter()
        places = [int(i) for step in range(0, 244_000, 2_440) for i in loader.index(step)]
        for place in places:
            source._index.read(RECORD.itemsize, place * RECORD.itemsize)
        each_ms = 1000 * (time.perf_counter() - begun) / 100
        print(f"window {window}: {each_ms:.2f} ms for one process's 64 samples of a batch of 4,096")
    print(f"memory grew by {memory() - before:.0f} MiB")


if __name__ == "__main__":
    main()
