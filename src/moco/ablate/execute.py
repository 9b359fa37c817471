"""Run the open cells of a plan: each in a process of its own, several at a time."""

import contextlib
import dataclasses
import json
import math
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moco.ablate.board import Board
from moco.ablate.cell import Call, run_cell
from moco.ablate.plan import Job, Plan, claimed
from moco.run_folder import STOPPED
from moco.training.interruption import EXIT_CODE, Interruption, name

_POLL = 0.2  # seconds between looks at the processes
_GRACE = 20.0  # seconds that processes have to save and leave
_WORDS = 2000  # characters of a failed cell's log that are shown
_ERROR = re.compile(r"(\[rank\d+\]: ?)?[A-Za-z_.]*(Error|Exception|Exit|Interrupt)\b")
"""How the last line of a traceback begins."""


@dataclass(frozen=True)
class Machine:
    """What cells run on.

    Attributes:
        jobs: cells at a time on each device; 0 runs them in this process, one after another.
        devices: as for `moco.pretrain`.
        threads: of each cell.
        workers: decoding threads of each cell.
        memory: GiB that a cell may take; what needs more is noted as not fitting.
        launcher: a command before "-m moco.ablate.cell", such as
            "torchrun --standalone --nproc-per-node 8"; empty takes this Python.
        most: cells to start in this call; None starts all.
        minutes: after which cells save and stop, to go on in the next call; None waits for all.
    """

    jobs: int = 1
    devices: tuple[str, ...] = ("auto",)
    threads: int = 1
    workers: int = 2
    memory: float | None = None
    launcher: str = ""
    most: int | None = None
    minutes: float | None = None

    def __post_init__(self):
        if self.jobs < 0:
            raise ValueError(f"jobs must be 0 (in this process) or more, got {self.jobs}")
        if self.threads < 1 or self.workers < 1:
            raise ValueError(f"threads and workers must be at least 1, got {self.threads}, {self.workers}")
        if self.memory is not None and not self.memory > 0:
            raise ValueError(f"memory must be above 0 GiB, got {self.memory}")
        if self.memory is not None and not self.jobs:
            raise ValueError("memory can be limited only for cells in processes of their own: set jobs to 1")

        for limit in "most", "minutes":
            value = getattr(self, limit)
            if value is not None and not value > 0:
                raise ValueError(f"{limit} must be above 0, got {value}")
        if self.minutes is not None and not self.jobs:
            raise ValueError("only cells in processes of their own can be stopped in time: set jobs to 1")

    def call(self, job: Job, data: str, device: str) -> Call:
        """What the process of a job is told."""
        return Call(
            job.cell, job.recipe.seed, str(job.out), data, device, self.workers, self.threads, self.memory
        )


@dataclass
class _Running:
    job: Job
    device: str
    process: subprocess.Popen[bytes]
    claim: contextlib.ExitStack = field(repr=False)

    @property
    def saved(self) -> bool:
        """Whether a process that has ended left its run to be continued; launchers end with other codes."""
        return self.process.returncode == EXIT_CODE or (self.job.folder / STOPPED).exists()

    def close(self) -> None:
        """Let go of a process that has ended."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.claim.close()


def execute(plan: Plan, machine: Machine, board: Board) -> None:
    """Run every cell that is not settled; finished ones are kept.

    Other calls on the same folder may run at the same time: each cell is held by one of them.

    Raises:
        RuntimeError: if a cell failed, after the others were run.
        SystemExit: with `EXIT_CODE`, after the cells have saved, if a signal asked this process to leave.
    """
    failed = _here(plan, machine, board) if machine.jobs == 0 else _apart(plan, machine, board)
    if failed:
        names = ", ".join(job.name for job in failed)
        raise RuntimeError(
            f"{len(failed)} of {len(plan.jobs)} cells failed ({names}); the first said: "
            f"{failed[0].outcome().get('reason', 'nothing')}"
        )


def _apart(plan: Plan, machine: Machine, board: Board) -> list[Job]:
    """Several at a time, in processes of their own; returns those that failed."""
    pending = [job for job in plan.jobs if not job.settled]
    free = list(machine.devices) * machine.jobs
    running: list[_Running] = []
    failed: list[Job] = []
    left = len(plan.jobs) if machine.most is None else machine.most
    end = math.inf if machine.minutes is None else time.monotonic() + 60 * machine.minutes
    with Interruption().heeded() as interruption, contextlib.ExitStack() as stack:
        stack.callback(_stop, running)
        while (pending and left) or running:
            if time.monotonic() > end or interruption.signal:
                break
            for job in list(pending):
                if not free or not left:
                    break
                claim = contextlib.ExitStack()
                held = claim.enter_context(claimed(job))
                if held is None:
                    continue  # another call is at it
                pending.remove(job)
                if job.settled:  # by another call, since
                    claim.close()
                    continue
                left -= 1
                running.append(_start(job, plan, machine, free.pop(0), held, claim))
                board.started(job)
            for one in list(running):
                if one.process.poll() is None:
                    continue
                one.close()
                running.remove(one)
                free.append(one.device)
                if one.saved:
                    _leave_open(one.job)
                elif one.process.returncode and not one.job.settled:
                    failed.append(one.job)  # none of its processes has told what became of it
                    one.job.tell(status="failed", reason=_last_words(one.job))
                board.ended(one.job)
            pending = [job for job in pending if not job.settled]
            board.refresh()
            time.sleep(_POLL)
    if interruption.signal:
        board.say(f"{name(interruption.signal)}: cells have saved; the same command goes on from there")
        raise SystemExit(EXIT_CODE)
    return failed


def _stop(running: Sequence[_Running]) -> None:
    """Ask processes to save and leave, and end those that do not in time."""
    end = time.monotonic() + _GRACE
    try:
        for one in running:
            one.process.terminate()
        for one in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.process.wait(max(0.0, end - time.monotonic()))
    finally:  # also when somebody does not want to wait
        for one in running:
            one.process.kill()
            one.process.wait()
            if one.saved:
                _leave_open(one.job)
            one.close()


def _leave_open(job: Job) -> None:
    """Forget what an earlier call noted of a cell that was asked to leave and goes on in the next one."""
    job.note.unlink(missing_ok=True)


def _here(plan: Plan, machine: Machine, board: Board) -> list[Job]:
    """One after another in this process; returns those that failed."""
    failed: list[Job] = []
    left = len(plan.jobs) if machine.most is None else machine.most
    for job in plan.jobs:
        with claimed(job) as held:
            if held is None or job.settled or not left:
                continue
            left -= 1
            board.started(job)
            try:
                run_cell(job, machine.call(job, plan.data, machine.devices[0]))
            except Exception as error:
                job.tell(status="failed", reason=f"{type(error).__name__}: {error}")
                failed.append(job)
            board.ended(job)
    return failed


def _start(
    job: Job, plan: Plan, machine: Machine, device: str, held: int, claim: contextlib.ExitStack
) -> _Running:
    python = shlex.split(machine.launcher) if machine.launcher else [sys.executable]
    call = json.dumps(dataclasses.asdict(machine.call(job, plan.data, device)))
    (job.folder / STOPPED).unlink(missing_ok=True)  # of an earlier call
    environment = os.environ | {
        "OMP_NUM_THREADS": str(machine.threads),
        "MKL_NUM_THREADS": str(machine.threads),
    }
    with open(_log(job), "ab") as log:
        process = subprocess.Popen(
            [*python, "-m", "moco.ablate.cell", call],
            stdin=subprocess.PIPE,  # closes when this process goes, however it goes; the cell then ends
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=[held],
        )
    return _Running(job, device, process, claim)


def _log(job: Job) -> Path:
    path = job.out / "logs" / f"{job.name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _last_words(job: Job) -> str:
    """The line of a log that says why Python gave up: the last error that is not a launcher's, or the end."""
    lines: Sequence[str] = _log(job).read_text(errors="replace").strip().splitlines()
    errors = [line for line in lines if _ERROR.match(line) and "ChildFailedError" not in line]
    said = (errors or lines)[-1:]
    return said[0][-_WORDS:] if said else f"nothing; see {_log(job)}"
