"""One cell of a study: an ordinary run, and a note of what became of it and what it cost.

    python -m moco.ablate.cell '{"cell": "m-0.99", "seed": 0, "out": "runs/study", "data": "cifar10/"}'

runs in a process of its own, so that its memory can be measured and limited, and ends when the
process that started it does.
"""

import contextlib
import json
import os
import statistics
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moco import heap, recipe_file
from moco.ablate.plan import Job
from moco.cluster import first_here, local_rank, rank_and_size
from moco.device import choose_device
from moco.launch import pretrain
from moco.training.journal import read
from moco.training.observer import Observer

_STEPS = 10  # whose memory is measured: all are alike
_GIB = 2**30


@dataclass(frozen=True)
class Call:
    """What a cell's process is told.

    Attributes:
        cell, seed: which of the study's.
        out: the study's folder.
        data, device, workers: as for `moco.pretrain`.
        threads: of the process, for arithmetic.
        memory: GiB that it may take; None sets no limit.
    """

    cell: str
    seed: int
    out: str
    data: str
    device: str = "auto"
    workers: int = 2
    threads: int = 1
    memory: float | None = None


def run_cell(job: Job, call: Call, observers: tuple[Observer, ...] = (), *, alone: bool = False) -> None:
    """Run or go on with a cell, and tell what became of it.

    A loss that is not finite and memory that does not suffice are outcomes of the study, not errors.

    Args:
        job: the cell.
        call: where and how.
        observers: told about progress.
        alone: the process is the cell's own, so its peak memory is the cell's.
    """
    watch = Peak(choose_device(call.device))
    try:
        result = pretrain(
            job.recipe,
            data=call.data,
            out=job.folder,
            device=call.device,
            workers=call.workers,
            observers=(watch, *observers),
        )
    except FloatingPointError as error:
        if first_here():  # all of several processes meet it
            job.tell(status="diverged", reason=str(error))
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        limit = f" with a limit of {call.memory:g} GiB" if call.memory else ""
        job.tell(status="out of memory", reason=f"does not fit{limit}")
    else:
        if first_here() and (watch.began or not job.note.exists()):
            job.tell(status="finished", **_cost(job, result.seconds, watch.mib if alone else None))


class Peak(Observer):
    """Notes the peak memory of the first steps, before anything is measured on the features."""

    def __init__(self, device: torch.device):
        self.device = device
        self.before = peak_mib(device)
        self.began = False
        self.open = True
        self.first = 0
        self.mib: float | None = None

    def begin(self, done: int, steps: int, batch_size: int) -> None:
        self.began, self.first = True, done
        heap.give_back()  # what reading and measuring the images left would hide what steps take
        reset_peak(self.device)

    def progress(self, done: int, row: dict[str, Any]) -> None:
        if self.open and done - self.first <= _STEPS:
            mib = peak_mib(self.device) - self.before
            self.mib = round(mib, 1) if mib > 0 else None

    def row(self, row: dict[str, Any]) -> None:
        self.open = self.open and "loss" in row

    def say(self, sentence: str) -> None: ...


def peak_mib(device: torch.device) -> float:
    """Peak memory since `reset_peak`, MiB: what torch allocated on a GPU, what the process held on a CPU.

    On systems other than Linux a CPU's is not known, and 0.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def reset_peak(device: torch.device) -> None:
    """Forget the peak so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def is_shortage(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is that memory does not suffice."""
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            return True
        error = error.__cause__
    return False


def _cost(job: Job, seconds: float, mib: float | None) -> dict[str, Any]:
    """Time and memory of a finished cell, and the machine."""
    speeds = [row["images_per_second"] for row in read(job.folder / "timing.jsonl")]
    _, about = recipe_file.read(job.folder / "recipe.toml")
    known = {} if mib is not None else {"peak_mib": job.outcome().get("peak_mib")}
    return {
        "seconds": seconds,
        "seconds_per_step": round(job.recipe.batch / statistics.median(speeds), 4) if speeds else None,
        "peak_mib": mib,
        "hardware": about["hardware"],
        "threads": about["threads"],
        "torch": about["torch"],
        "commit": about["commit"],
    } | known


def limit_memory(gib: float, device: str) -> None:
    """Let this process take so much memory, on the device it trains on, and no more.

    Raises:
        ValueError: if there is no way to limit it here.
    """
    if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
        gpu = _gpu(device)
        total = torch.cuda.get_device_properties(gpu).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * _GIB / total), gpu)
        return
    try:
        import resource
    except ImportError:
        raise ValueError("memory cannot be limited on this system; leave --memory out") from None
    resource.setrlimit(resource.RLIMIT_DATA, (int(gib * _GIB), resource.RLIM_INFINITY))


def _gpu(device: str) -> int:
    """Number of the GPU that `choose_device` will take: under a launcher, each process has its own."""
    if rank_and_size()[1] > 1:
        return min(local_rank(), torch.cuda.device_count() - 1)  # too few are refused when it begins
    index = torch.device("cuda" if device == "auto" else device).index
    return torch.cuda.current_device() if index is None else index


def _end_with_parent() -> None:
    """Exit when standard input closes: whoever started this process is gone."""

    def wait() -> None:
        while os.read(0, 4096):  # not sys.stdin, whose lock a waiting thread would hold at exit
            pass
        os._exit(130)

    threading.Thread(target=wait, daemon=True).start()


def main(words: list[str]) -> None:
    """Run the cell that a JSON object describes: the fields of `Call`."""
    call = Call(**json.loads(words[0]))
    if "RANK" not in os.environ:  # torchrun ends its processes itself, and gives them no standard input
        _end_with_parent()
    torch.set_num_threads(call.threads)
    request = Path(call.out) / "recipes" / f"{call.cell}-seed{call.seed}.toml"
    recipe, _ = recipe_file.read(request)
    if call.memory is not None:
        limit_memory(call.memory, call.device)
    run_cell(Job(call.cell, recipe, Path(call.out)), call, alone=True)


if __name__ == "__main__":
    main(sys.argv[1:])
