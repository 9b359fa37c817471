"""Two ways of one thing in alternation, as a ratio: what every table of `speed.py` is made of."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torchvision

from moco.processor import has_fast_bfloat16
from moco.run_folder import machine

side: str | None = None
"""Which side this process runs, "theirs" or "ours"; None in the one that compares."""
_TOOK = "took "
_TURN = 0.3  # seconds


@dataclass
class Measured:
    """Seconds of both in each round, how far their values are apart, and what the ratio must be.

    Attributes:
        what: is done, and how much of it.
        times: of the other way and of ours, in each round.
        gate: how their values compare.
        must: the least ratio; None where there is no such bound.
        note: what else is to be known.
        extra: for the row.
        other: whose way the other one is.
        wall: whether times are wall time on two threads, not processor time of one.
    """

    what: str
    times: list[tuple[float, float]]
    gate: str
    must: float | None
    note: str = ""
    extra: dict[str, Any] | None = None
    other: str = "released"
    wall: bool = False

    def row(self) -> dict[str, Any]:
        """The row that is kept."""
        ratios = sorted(a / b for a, b in self.times)
        low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
        return {
            "what": self.what,
            "other": self.other,
            "other_ms": round(1e3 * statistics.median(a for a, _ in self.times), 3),
            "ours_ms": round(1e3 * statistics.median(b for _, b in self.times), 3),
            "ratio": round(statistics.median(ratios), 2), "p10": round(low, 2), "p90": round(high, 2),
            "rounds": len(ratios), "must": self.must, "gate": self.gate, "note": self.note,
            "time": "wall" if self.wall else "processor",
            **(self.extra or {}),
            "machine": machine(torch.device("cpu")) | {
                "bfloat16 in hardware": has_fast_bfloat16(torch.device("cpu")),
                "torchvision": torchvision.__version__,
            },
        }  # fmt: skip


def alternate(
    theirs: Callable[[], object],
    ours: Callable[[], object],
    rounds: int,
    clock: Callable[[], float] = time.process_time,
) -> list[tuple[float, float]]:
    """Seconds of both in each round, after one of each to warm up.

    Each side runs in a process of its own, which makes the same table anew and waits here for its turns:
    theirs as Python starts it, ours with memory as the command `moco` takes it.
    """
    if side is not None:
        serve(theirs if side == "theirs" else ours, clock)
    command = [sys.executable, *sys.argv, "--side"]
    processes = [
        subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in ("theirs", "ours")
    ]
    try:
        times = [(_turn(processes[0]), _turn(processes[1])) for _ in range(1 + rounds)]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return times[1:]


def serve(run: Callable[[], object], clock: Callable[[], float]) -> NoReturn:
    """Run for each line on standard input, and say how many seconds it took; short work is repeated, so
    that a turn is no matter of how cold the processor has become."""
    for _ in sys.stdin:
        count, begin, start = 0, time.perf_counter(), clock()
        while not count or time.perf_counter() - begin < _TURN:
            run()
            count += 1
        print(f"{_TOOK}{(clock() - start) / count}", flush=True)
    sys.exit()


def _turn(process: subprocess.Popen[str]) -> float:
    """One turn of a process that serves."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith(_TOOK):
            return float(line.removeprefix(_TOOK))
    raise RuntimeError("a side ended before its turn; its words are above")
