"""What torchrun or srun tell a process by its environment: which of the processes it is, and where."""

import ctypes
import os
import re
import signal
import sys


def rank_and_size() -> tuple[int, int]:
    """Rank and number of processes as torchrun or srun say; (0, 1) without them."""
    for rank, size in ("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        if rank in os.environ and size in os.environ:
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


def first_here() -> bool:
    """Whether this process, by its environment, is the first of its run or the only one."""
    return rank_and_size()[0] == 0


def local_rank() -> int:
    """This process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))


def processes_here(size: int) -> int:
    """How many of the run's `size` processes share this machine; all of them, where nothing says."""
    if "LOCAL_WORLD_SIZE" in os.environ:
        return int(os.environ["LOCAL_WORLD_SIZE"])
    each = _each(os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    machine = int(os.environ.get("SLURM_NODEID", 0))
    return each[machine] if machine < len(each) else size


def bound_to_a_gpu() -> bool:
    """Whether SLURM shows each process one GPU, its own, as with --gpus-per-task=1."""
    asked = os.environ.get("SLURM_GPUS_PER_TASK", "").rpartition(":")[2]
    return "LOCAL_RANK" not in os.environ and (
        asked == "1" or os.environ.get("SLURM_GPU_BIND", "").startswith(("single:1", "per_task:1"))
    )


def first_host(nodes: str) -> str:
    """The first host of a SLURM node list: "gpu[03-05,9],x1" gives "gpu03"."""
    found = re.match(r"([^\[,]+)(?:\[(\d+))?", nodes)
    return (found[1] + (found[2] or "")) if found else "localhost"


def end_with_parent() -> None:
    """Have this process asked to end when torchrun dies, so that no orphan trains on (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _each(tasks: str) -> list[int]:
    """SLURM's list of how many processes each machine has: "8(x2),4" gives [8, 8, 4]."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks)
    return [int(count) for count, times in found for _ in range(int(times or 1))]
