"""Two ways of one thing in alternation, as a ratio: what every table of `speed.py` is made of."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchvision

from moco.build import has_fast_bfloat16
from moco.run_folder import machine


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
    """Seconds of both in each round, after one of each to warm up."""
    theirs(), ours()
    times = []
    for _ in range(rounds):
        start = clock()
        theirs()
        middle = clock()
        ours()
        times.append((middle - start, clock() - middle))
    return times
