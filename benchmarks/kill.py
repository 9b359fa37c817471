"""Kill a run at random moments, go on each time, and compare the end with an undisturbed run.

    python benchmarks/kill.py [--kills 30] [--seed 0]

One long-suffering run is killed with SIGKILL at a random moment after it has started to train, again and
again, and continued by the same command. Its final checkpoint, journal and backbone must equal those of
a run that nothing disturbed, to the bit. Exit code 1 if they do not.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from moco.training.checkpoint import Checkpoints

RUN = [
    *(sys.executable, "-m", "moco", "pretrain", "demo", "--epochs", "3", "--batch", "64", "--out"),
]
OPTIONS = [
    "--checkpoint-every",
    "7",
    "--journal-every",
    "5",
    "--monitor.bank",
    "500",
    "--monitor.queries",
    "100",
]


def same(a: object, b: object) -> bool:
    """Whether two checkpoints hold the same bits."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    call = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="moco-kill-"))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    quiet = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*RUN, str(folder / "calm"), *OPTIONS], check=True, **quiet)  # type: ignore[call-overload]
    moments, steps = random.Random(call.seed), []
    victim = folder / "victim"
    for _ in range(call.kills):
        before = (victim / "journal.jsonl").stat().st_mtime_ns if (victim / "journal.jsonl").exists() else 0
        process = subprocess.Popen([*RUN, str(victim), *OPTIONS], **quiet)  # type: ignore[call-overload]
        while process.poll() is None:
            path = victim / "journal.jsonl"
            if path.exists() and path.stat().st_mtime_ns > before:
                break
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 1.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = Checkpoints(victim / "checkpoints", say=print).load()
        steps.append(found[0] if found else 0)
        print(f"kill {len(steps)}: newest whole checkpoint at step {steps[-1]}", flush=True)
    subprocess.run([*RUN, str(victim), *OPTIONS], check=True, **quiet)  # type: ignore[call-overload]

    ends = [Checkpoints(folder / name / "checkpoints").load() for name in ("calm", "victim")]
    equal = same(*ends) and all(
        (folder / "calm" / name).read_bytes() == (victim / name).read_bytes()
        for name in ("journal.jsonl", "backbone.safetensors")
    )
    shutil.rmtree(folder)
    print(f"{call.kills} kills, checkpoints at {len(set(steps))} different steps: "
          f"{'identical bits' if equal else 'THE RUNS DIFFER'}")  # fmt: skip
    sys.exit(not equal)


if __name__ == "__main__":
    main()
