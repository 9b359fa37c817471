"""The index of very many small files: how long the first takes, how long later ones, and how much memory.

    python benchmarks/index.py [--files 1000000] [--where FOLDER] [--cold] [--peer]

Writes the files (1 x 1 pixel PNG, 1,000 a folder) into a temporary folder and removes them. Each measurement
is a process of its own; memory is what it grew by and its peak in all. --cold empties the system's file cache
before the first (needs root); --peer also measures torchvision's ImageFolder.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

MEASURE = """
import json, resource, sys, time
{imports}
grown = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, start, worked = grown(), time.perf_counter(), time.process_time()
found = {call}
spent, worked = time.perf_counter() - start, time.process_time() - worked
print(json.dumps({{"seconds": round(spent, 4), "processor seconds": round(worked, 4), "images": len(found),
                  "MiB more": round(grown() - before), "MiB at most": round(grown())}}))
"""
OURS = {"imports": "from moco.data.index import open_index", "call": "open_index(sys.argv[1])"}
PEER = {
    "imports": "from torchvision.datasets import ImageFolder",
    "call": "ImageFolder(sys.argv[1])",
}


def measure(way: dict[str, str], folder: str, cache: str) -> dict[str, float]:
    """Run one way in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE.format(**way), folder],
        env=os.environ | {"XDG_CACHE_HOME": cache}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def write(root: Path, files: int) -> None:
    """Small images, a thousand to a folder."""
    kept = io.BytesIO()
    Image.new("RGB", (1, 1)).save(kept, "PNG")
    content = kept.getvalue()
    for start in range(0, files, 1000):
        folder = root / f"class-{start // 1000:05d}"
        folder.mkdir()
        for number in range(start, min(start + 1000, files)):
            file = os.open(f"{folder}/image-{number:08d}.png", os.O_WRONLY | os.O_CREAT, 0o644)
            os.write(file, content)
            os.close(file)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--where", default=None)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--peer", action="store_true")
    call = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=call.where) as folder, tempfile.TemporaryDirectory() as cache:
        write(Path(folder), call.files)
        if call.cold:
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("3")
        print("first", json.dumps(measure(OURS, folder, cache)))
        with tempfile.TemporaryDirectory() as empty:
            print("first, files in the system's cache", json.dumps(measure(OURS, folder, empty)))
        for _ in range(3):
            print("again", json.dumps(measure(OURS, folder, cache)))
        if call.peer:
            print("ImageFolder", json.dumps(measure(PEER, folder, cache)))


if __name__ == "__main__":
    main()
