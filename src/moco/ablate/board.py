"""What is seen while a study runs: a live table on a terminal, a line per cell elsewhere."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.live import Live
from rich.table import Table

from moco.ablate.plan import Job, Plan
from moco.console import Plain, clock
from moco.training.journal import read

_EVERY = 2.0  # seconds between two looks at the journals


class Board:
    """Progress of a study on standard error.

    Args:
        plan: what is run.
        seconds: an estimate for each job by name; missing ones are taken to be like the others.
        slots: cells at a time.
        tell: takes the sentences, in place of standard error.
    """

    def __init__(
        self,
        plan: Plan,
        seconds: Mapping[str, float],
        slots: int = 1,
        tell: Callable[[str], None] | None = None,
    ):
        self.plan, self.seconds, self.slots = plan, dict(seconds), max(1, slots)
        self.tell = tell
        self.console = Plain()
        self.live: Live | None = None
        self.at: dict[str, float] = {}
        self.looked = 0.0

    def __enter__(self) -> "Board":
        if self.console.is_terminal and self.tell is None:
            self.live = Live(self.table(), console=self.console, refresh_per_second=1)
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live is not None:
            self.live.update(self.table())
            self.live.stop()

    def started(self, job: Job) -> None:
        """A cell has begun or goes on."""
        self.at[job.name] = time.monotonic()
        self.refresh(now=True)

    def ended(self, job: Job) -> None:
        """A cell's process has ended."""
        took = time.monotonic() - self.at.pop(job.name, time.monotonic())
        settled = sum(job.settled for job in self.plan.jobs)
        left = self.left()
        rest = f"; about {clock(left)} left" if left else ""
        self.say(
            f"{settled}/{len(self.plan.jobs)}  {job.cell}, seed {job.recipe.seed}: "
            f"{describe(job, self.plan.study.metric) or 'to be continued'} ({clock(took)}){rest}"
        )
        self.refresh(now=True)

    def refresh(self, *, now: bool = False) -> None:
        """Look at the journals again, if it is time."""
        if self.live is not None and (now or time.monotonic() - self.looked > _EVERY):
            self.looked = time.monotonic()
            self.live.update(self.table())

    def say(self, sentence: str) -> None:
        """A line that stays."""
        if self.tell is not None:
            self.tell(sentence)
        else:
            self.console.print(sentence, soft_wrap=True)

    def left(self) -> float:
        """Seconds until the last cell has ended, about."""
        known = list(self.seconds.values())
        usual = sum(known) / len(known) if known else 0.0
        open_jobs = [job for job in self.plan.jobs if not job.settled]
        work = sum(self.seconds.get(job.name, usual) * (1 - share(job)) for job in open_jobs)
        return work / self.slots

    def table(self) -> Table:
        """Cells by seeds, as they stand."""
        left = self.left()
        title = self.plan.study.question + (f"  ({clock(left)} left)" if left else "")
        shown = Table(title=title, title_justify="left")
        shown.add_column("cell")
        for seed in self.plan.seeds:
            shown.add_column(f"seed {seed}", justify="right")
        for name in self.plan.study.recipes():
            shown.add_row(name, *(self._entry(job) for job in self.plan.of(name)))
        return shown

    def _entry(self, job: Job) -> str:
        if job.name in self.at:
            return f"{100 * share(job):.0f} % …"
        return describe(job, self.plan.study.metric)


def share(job: Job) -> float:
    """How much of a job's training its journal shows, in [0, 1]."""
    rows = [row for row in read(job.folder / "journal.jsonl") if "epoch" in row]
    if not rows or job.recipe.epochs is None:
        return 0.0
    return min(1.0, rows[-1]["epoch"] / job.recipe.epochs)


def describe(job: Job, metric: str) -> str:
    """A job in a few characters: its value, or how it stands."""
    from moco.ablate.table import measures

    known: dict[str, Any] = job.outcome()
    if known["status"] == "finished":
        value = measures(job).get(metric)
        return "done" if value is None else f"{value:.2f}"
    return "" if known["status"] == "open" else known["status"]
