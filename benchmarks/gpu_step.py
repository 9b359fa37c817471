"""Whole steps on a GPU in every form a recipe can ask for: images per second, memory, where the time goes.

    python benchmarks/gpu_step.py [--case cifar resnet50 jpeg] [--out FILE.json] [--minutes M] [--toy]

Cases: the released CIFAR-10 demo (batch 512), ResNet-50 on 224 pixels from images on the device (batch 256,
K = 65,536), and the same from a folder of JPEG files of 500 x 375. Each form starts from the same weights
and images; its first loss must be that of torch's operations before its speed counts. Forms that FILE.json
holds are not measured again, and none is begun after M minutes: the same command goes on. `--toy`
rehearses everything on a CPU, at sizes that say nothing.
"""

import argparse
import contextlib
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from moco import recipe
from moco.build import build, resolve
from moco.data.open import open_source
from moco.data.procedural import procedural
from moco.images import Data
from moco.recipes import get
from moco.run_folder import machine
from moco.training.checkpoint import Checkpoints
from moco.training.interruption import EXIT_CODE
from moco.training.step import step
from moco.training.trainer import Run
from moco.world import Solo

FORMS = (
    ("torch", "off"),
    ("triton", "off"),
    ("torch", "default"),
    ("triton", "default"),
    (
        "triton",
        "reduce-overhead",
    ),
)  # kernels, compile
CASES = {"cifar": ("cifar", 512, 20_000), "resnet50": ("v1", 256, 2048), "jpeg": ("v1", 256, 4096)}
_GATE = 3  # steps whose losses are compared
_APART = 0.03  # the first loss at most: bfloat16 alone is 2 % from float32 at toy sizes; later ones are told
_PARTS = {
    "convolutions and products": ("conv", "gemm", "wgrad", "dgrad", "fprop", "cutlass", "xmma", "sm90", "mm"),
    "views": ("_colour", "_blur"),
    "normalisation": ("norm", "_moments", "_apply", "_gradient", "_sums"),
    "loss": ("_stream", "_merge"),
    "update": ("multi_tensor", "lerp", "foreach"),
    "compiled": ("triton_",),
    "copies": ("memcpy", "copy", "memset"),
}


def settings(case: str, toy: bool) -> tuple[recipe.Recipe, int]:
    """The recipe of a case, and the number of images."""
    name, batch, images = CASES[case]
    values = replace(get(name), batch=batch, epochs=1000, precision="bfloat16")
    if toy:
        small = replace(values.encoder, arch="resnet10", width=8, bn_group=4)
        views = replace(values.views, size=min(values.views.size, 32))
        table = recipe.MomentumQueue(64)
        return replace(values, batch=8, encoder=small, views=views, dictionary=table), 128
    return values, images


@contextlib.contextmanager
def images_of(case: str, values: recipe.Recipe, count: int) -> Iterator[Data]:
    """Images of a case: in memory, or JPEG files in a folder that is gone afterwards."""
    if case != "jpeg":
        yield Data(procedural(count, size=values.views.size), None)
        return
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        pixels = procedural(min(count, 256), size=96).pixels.permute(0, 2, 3, 1).numpy()

        def write(i: int) -> None:
            image = Image.fromarray(pixels[i % len(pixels)]).resize((500, 375), Image.Resampling.BICUBIC)
            image.save(f"{folder}/{i:06}.jpg", quality=90)

        list(pool.map(write, range(count)))
        photos = open_source(folder)
        assert photos is not None
        yield Data(photos, None)


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clocked(run: Run, start: int, steps: int, device: torch.device) -> tuple[float, list[float]]:
    """Seconds of so many steps with their images, and their losses."""
    wait(device)
    clock, losses = time.perf_counter(), []
    for batch in islice(run.batches(start, run.steps), steps):
        losses.append(step(run, batch, run.world).loss)
    wait(device)
    return time.perf_counter() - clock, torch.stack(losses).tolist()


def parts(run: Run, start: int, steps: int, device: torch.device) -> dict[str, float]:
    """Milliseconds a step that the device spends on each kind of work, and the wall time beside it."""
    kind = torch.profiler.ProfilerActivity
    with torch.profiler.profile(
        activities=[kind.CPU, *([kind.CUDA] if device.type == "cuda" else [])]
    ) as seen:
        wall, _ = clocked(run, start, steps, device)
    spent = dict.fromkeys([*_PARTS, "other"], 0.0)
    calls = 0
    for event in seen.key_averages():
        own = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        if not own or (device.type == "cuda" and event.device_type.name != "CUDA"):
            continue
        calls += event.count
        name = event.key.lower()
        part = next((p for p, words in _PARTS.items() if any(word in name for word in words)), "other")
        spent[part] += own / 1e3 / steps
    found = {part: round(ms, 3) for part, ms in spent.items() if ms}
    return found | {"device": round(sum(spent.values()), 3), "wall": round(1e3 * wall / steps, 3)} | {
        "launches": round(calls / steps)
    }  # fmt: skip


def views_alone(run: Run, start: int, steps: int, device: torch.device) -> float:
    """Milliseconds of making one batch, its two views included."""
    wait(device)
    clock = time.perf_counter()
    for _ in islice(run.batches(start, run.steps), steps):
        pass
    wait(device)
    return 1e3 * (time.perf_counter() - clock) / steps


def measure(
    values: recipe.Recipe, data: Data, device: torch.device, toy: bool, expected: list[float] | None
) -> dict[str, Any]:
    """What one form gives."""
    torch.compiler.reset()
    values = resolve(values, data, device)
    warm, timed, rounds = (1, 2, 2) if toy else (20, 50, 3)
    with tempfile.TemporaryDirectory() as folder:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        run = build(values, data, Solo(), device=device, checkpoints=Checkpoints(Path(folder)), workers=16)
        run.f_q.train(), run.keys.train()
        first, losses = clocked(run, 0, _GATE, device)
        clocked(run, _GATE, warm, device)
        done = _GATE + warm
        speeds = []
        for _ in range(rounds):
            seconds, _ = clocked(run, done, timed, device)
            speeds.append(timed * values.batch / seconds)
            done += timed
        row: dict[str, Any] = {
            "images_per_second": round(statistics.median(speeds)),
            "least": round(min(speeds)),
            "most": round(max(speeds)),
            "first_steps_s": round(first, 2),
            "batch_ms": round(views_alone(run, done, timed, device), 3),
            "parts_ms": parts(run, done, max(2, timed // 10), device),
        }
        if device.type == "cuda":
            row["peak_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    row["first_losses"] = losses
    if expected is not None:
        apart = [abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True)]
        if apart[0] > _APART:
            raise ValueError(f"the first loss is {losses[0]}, that of torch's operations {expected[0]}")
        row["losses_apart"] = [round(x, 5) for x in apart]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--minutes", type=float, default=math.inf)
    call = parser.parse_args()
    end = time.monotonic() + 60 * call.minutes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not call.toy:
        sys.exit("steps are measured on a CUDA device; --toy rehearses without one")
    forms = FORMS if device.type == "cuda" else [form for form in FORMS if form[0] == "torch"]
    found: dict[str, Any] = {"machine": machine(device), "torch": torch.__version__}
    if call.out is not None and call.out.exists():
        found = json.loads(call.out.read_text())
    for case in call.case:
        values, count = settings(case, call.toy)
        names = {f"{case}: {kernels}, compile {mode}": (kernels, mode) for kernels, mode in forms}
        if names.keys() <= found.keys():
            continue
        with images_of(case, values, count) as data:
            for name, (kernels, mode) in names.items():
                if name in found:
                    continue
                if time.monotonic() > end:
                    print("time is up; the same command goes on")
                    sys.exit(EXIT_CODE)
                expected = found.get(next(iter(names)), {}).get("first_losses")
                form: Any = {"kernels": kernels, "compile": mode}
                try:
                    found[name] = measure(replace(values, **form), data, device, call.toy, expected)
                except Exception as error:  # one form that fails is a finding, and the others go on
                    found[name] = {"failed": f"{type(error).__name__}: {error}"[:500]}
                print(f"{name}: {json.dumps(found[name])}", flush=True)
                if call.out is not None:
                    call.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
