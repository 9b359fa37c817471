"""Whole runs, one after the other, alone on the machine: the wall time of `moco pretrain` and its kNN.

    python benchmarks/whole_runs.py RECIPE --data DATA --out FOLDER [--seeds 0 1 2] [--minutes M]
                                    [--row FILE.toml] [--flags "--kernels triton --compile default"]

The time is that of the processes from start to end: imports, compiling, reading of the images and all
measurements included, nothing compiled before. A run that M minutes cut off saves, and the same command
goes on with it; the time it was away does not count, that of starting again does. The row is that of
`results.py add`, and the times.
"""

import argparse
import json
import math
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tomli_w

import results
from moco.files import write_atomically
from moco.training.interruption import EXIT_CODE

_SAVING = 60  # seconds that a run may take to save after it was asked to leave


def calls_of(folder: Path) -> list[float]:
    """Seconds of each call of `moco pretrain` for a run folder."""
    note = folder.with_suffix(".seconds.json")
    return json.loads(note.read_text()) if note.exists() else []


def pretrain(words: list[str], folder: Path, seconds: float) -> int:
    """One call of `moco pretrain`, which is asked to leave after so many seconds; returns its exit code."""
    command = [sys.executable, "-m", "moco", "pretrain", *words, "--out", str(folder)]
    with tempfile.TemporaryDirectory() as caches:
        own = {name: f"{caches}/{name}" for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | own)
        try:
            code = process.wait(seconds if math.isfinite(seconds) else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(_SAVING)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
    calls = [*calls_of(folder), round(time.monotonic() - began, 1)]
    write_atomically(folder.with_suffix(".seconds.json"), json.dumps(calls).encode())
    return code


def row(folders: list[Path], flags: str) -> dict[str, Any]:
    """A result row of finished runs with their wall times."""
    found = results.row(folders)
    walls = [calls_of(folder) for folder in folders]
    return found | {
        "command": f"{found['command']} {flags}".strip(),
        "wall_seconds": statistics.median(sum(calls) for calls in walls),
        "wall_seconds_each": [round(sum(calls), 1) for calls in walls],
        "calls_each": [len(calls) for calls in walls],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--row", type=Path, default=None)
    parser.add_argument("--flags", default="", help="more words for moco pretrain")
    call = parser.parse_args()
    end = time.monotonic() + 60 * call.minutes
    call.out.mkdir(parents=True, exist_ok=True)
    done: list[Path] = []
    for seed in call.seeds:
        folder = call.out / f"{call.recipe}-{seed}"
        if not (folder / "result.json").exists():
            if (left := end - time.monotonic()) <= 0:
                sys.exit(EXIT_CODE)
            words = [call.recipe, "--data", call.data, "--seed", str(seed), *shlex.split(call.flags)]
            if code := pretrain(words, folder, left):
                sys.exit(code)
        done.append(folder)
        found = row(done, call.flags)
        knn = found["knn"]["trained_output"]["mean"]
        print(
            f"{call.recipe}, seeds {found['seeds']}: kNN {knn:.2f} %, {found['wall_seconds']:.0f} s",
            flush=True,
        )
        if call.row is not None:
            call.row.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(call.row, tomli_w.dumps(found).encode())


if __name__ == "__main__":
    main()
