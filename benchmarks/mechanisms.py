"""Memory and time of a training step of the three mechanisms, at equal batches and at equal K.

    python benchmarks/mechanisms.py [--arch resnet18] [--width 32] [--batch 64] [--sizes 64 128 256]
                                    [--limit GIB] [--steps 5] [--rounds 3] [--out FILE.json]

Each measurement is a fresh process that takes a few steps and prints its peak memory above that of a
process with Python and torch alone (on a GPU: what torch allocated), and the median seconds of a step,
by the clock and of the processor's work, which tells more where others share the machine.
Queue and bank keep the batch and change K; end-to-end needs a batch of K. With --limit the sizes are
doubled until end-to-end no longer fits into so many GiB: the limit that the paper's Figure 3 stops at.
Processes alternate between the mechanisms; printed is the median over the rounds.

The papers' numbers (MoCo v2, Table 3: ResNet-50, batch 256, 8 V100, for 200 epochs): MoCo 5.0 GB per
GPU and 53 hours, end-to-end 7.4 GB and 65 hours: 1.48 times the memory and 1.23 times the time.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from moco.ablate.cell import is_shortage, limit_memory, peak_mib, reset_peak
from moco.build import build, resolve
from moco.data.procedural import procedural
from moco.device import choose_device
from moco.images import Data
from moco.recipe import Encoder, InBatch, MemoryBank, MomentumKeys, MomentumQueue, QueryKeys, Recipe, TiedKeys
from moco.recipes import get
from moco.training.checkpoint import Checkpoints
from moco.training.step import step
from moco.world import Solo

MECHANISMS = ("momentum queue", "memory bank", "end-to-end")


def recipe(mechanism: str, size: int, call: argparse.Namespace) -> Recipe:
    """The recipe of a mechanism with K = size."""
    base = replace(
        get("cifar"),
        encoder=Encoder(arch=call.arch, width=call.width, stem=call.stem, bn_group=call.batch // 8),
        views=replace(get("cifar").views, size=call.pixels),
        batch=call.batch,
        precision=call.precision,
    )
    if mechanism == "momentum queue":
        return replace(base, keys=MomentumKeys(0.99), dictionary=MomentumQueue(size, mask_own=True))
    if mechanism == "memory bank":
        return replace(base, keys=QueryKeys(), dictionary=MemoryBank(size))
    return replace(base, keys=TiedKeys(), dictionary=InBatch(), batch=size)


def measure(mechanism: str, size: int, call: argparse.Namespace) -> dict[str, Any]:
    """In a fresh process: what one step of a mechanism takes."""
    words = [sys.executable, __file__, "--one", mechanism, "--sizes", str(size)]
    for name in "arch", "stem", "precision", "device":
        words += [f"--{name}", getattr(call, name)]
    for name in "batch", "pixels", "steps", "images", *(["width"] if call.width else []):
        words += [f"--{name}", str(getattr(call, name))]
    words += ["--limit", str(call.limit)] if call.limit else []
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{mechanism}, K = {size}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def one(mechanism: str, size: int, call: argparse.Namespace) -> dict[str, Any]:
    """Peak memory in MiB and seconds per step, or that it does not fit."""
    device = choose_device(call.device)
    before = peak_mib(device)
    if call.limit:
        limit_memory(call.limit, str(device))
    data = Data(procedural(max(call.images, 2 * size), size=call.pixels), None)
    values = resolve(recipe(mechanism, size, call), data, device)
    try:
        run = build(values, data, Solo(), device=device, checkpoints=Checkpoints(Path("unused")))
        run.f_q.train()
        run.keys.train()
        reset_peak(device)
        times, worked = [], []
        for batch in run.batches(0, call.steps + 1):
            start, at_work = time.perf_counter(), time.process_time()
            step(run, batch, run.world)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
            worked.append(time.process_time() - at_work)
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        return {"fits": False}
    seconds = statistics.median(times[1:])
    return {
        "fits": True,
        "mib": round(peak_mib(device) - before, 1),
        "seconds": round(seconds, 4),
        "processor_seconds": round(statistics.median(worked[1:]), 4),
        "images_per_second": round(values.batch / seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--width", type=int, default=None)
    parser.add_argument("--stem", default="small")
    parser.add_argument("--pixels", type=int, default=32)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--limit", type=float, default=None)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--one", choices=MECHANISMS)
    call = parser.parse_args()
    if call.one:
        print(json.dumps(one(call.one, call.sizes[0], call)))
        return
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for _ in range(call.rounds):
        for size in call.sizes:
            for mechanism in MECHANISMS:
                told = measure(mechanism, size, call)
                print(f"{mechanism}, K = {size}: {json.dumps(told)}", file=sys.stderr, flush=True)
                found.setdefault((mechanism, size), []).append(told)
    rows = []
    for (mechanism, size), rounds in found.items():
        row: dict[str, Any] = {
            "mechanism": mechanism,
            "K": size,
            "fits": all(each["fits"] for each in rounds),
        }
        row["batch"] = size if mechanism == "end-to-end" else call.batch
        if row["fits"]:
            for name in "mib", "seconds", "processor_seconds", "images_per_second":
                row[name] = statistics.median(each[name] for each in rounds)
        rows.append(row)
        print(json.dumps(row), flush=True)
    size = max(call.sizes)
    while call.limit and rows[-1]["fits"]:
        size *= 2
        rows.append({"mechanism": "end-to-end", "K": size, "batch": size} | measure("end-to-end", size, call))
        print(json.dumps(rows[-1]), flush=True)
    if call.out is not None:
        about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "rounds": call.rounds}
        arguments = {name: value for name, value in vars(call).items() if name not in ("out", "one")}
        call.out.write_text(json.dumps({**about, "call": arguments, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
