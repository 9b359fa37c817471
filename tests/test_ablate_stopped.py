"""Studies asked to leave: their time is over, or a signal came; cells save and the next call goes on."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from moco.ablate import execute as executing
from moco.ablate.board import Board
from moco.ablate.execute import Machine
from moco.ablate.plan import Plan, claimed
from toy_study import calm, data, quick, quiet, toy, toy_file  # noqa: F401

SAVES = """#!{python}
import os, pathlib, signal, sys, time
here = pathlib.Path(__file__).parent
asked = []

def leave(kind, _):
    asked.append(kind)

for kind in signal.SIGTERM, signal.SIGUSR1:
    signal.signal(kind, signal.SIG_IGN if {deaf} else leave)
if {alarmed}:
    leave(signal.SIGTERM, None)  # the signal went to all processes
(here / "ready").touch()
end = time.monotonic() + {seconds}
while time.monotonic() < end and not asked:
    time.sleep(0.01)
if asked:
    time.sleep(0.5)
    (here / "saved").touch()
sys.exit(75)
"""


def _cell_of(plan, tmp_path, monkeypatch, *, deaf=False, alarmed=False, seconds=60, **how):
    """Run a plan's only cell, whose process is a script that saves; what is said."""
    script = tmp_path / "saves.py"
    script.write_text(SAVES.format(python=sys.executable, deaf=deaf, alarmed=alarmed, seconds=seconds))
    script.chmod(0o755)
    monkeypatch.setattr(executing, "sys", SimpleNamespace(executable=str(script)))
    plan.begin(1)
    plan.jobs[0].tell(status="failed", reason="of an earlier call")
    said = []
    executing.execute(plan, Machine(**how), Board(plan, {}, tell=said.append))
    return said


@pytest.fixture
def plan(tmp_path):
    return Plan(toy(0.1), "x", (0,), tmp_path / "study")


@pytest.fixture
def late(tmp_path, monkeypatch):
    """An hour passes once the cell is ready."""
    ready = tmp_path / "ready"
    clock = SimpleNamespace(
        sleep=lambda _: time.sleep(0.02), monotonic=lambda: time.monotonic() + 3600 * ready.exists()
    )
    monkeypatch.setattr(executing, "time", clock)


@pytest.mark.usefixtures("late")
def test_a_cell_whose_time_is_over_may_save(plan, tmp_path, monkeypatch):
    _cell_of(plan, tmp_path, monkeypatch, minutes=30)
    assert (tmp_path / "saved").exists()
    assert plan.jobs[0].outcome() == {"status": "open"}


@pytest.mark.usefixtures("late")
def test_a_cell_that_does_not_leave_in_time_is_killed(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(executing, "_GRACE", 0.1, raising=False)
    began = time.monotonic()
    _cell_of(plan, tmp_path, monkeypatch, deaf=True, minutes=30)
    assert time.monotonic() - began < 30
    assert not (tmp_path / "saved").exists()


def test_a_cell_that_was_asked_to_leave_is_open(plan, tmp_path, monkeypatch):
    said = _cell_of(plan, tmp_path, monkeypatch, seconds=0)
    assert plan.jobs[0].outcome() == {"status": "open"}
    assert "t-0.1, seed 0: to be continued" in said[0]


@pytest.mark.parametrize(
    ("kind", "alarmed"),
    [(signal.SIGTERM, False), (signal.SIGUSR1, False), (signal.SIGTERM, True)],
    ids=["SIGTERM", "SIGUSR1", "SIGTERM to all its processes"],
)
def test_a_signal_to_a_study_lets_its_cells_save(plan, tmp_path, monkeypatch, kind, alarmed):
    def send():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), kind)

    threading.Thread(target=send).start()
    with pytest.raises(SystemExit) as stopped:
        _cell_of(plan, tmp_path, monkeypatch, alarmed=alarmed)
    assert stopped.value.code == 75
    assert (tmp_path / "saved").exists()
    assert plan.jobs[0].outcome() == {"status": "open"}


def test_what_one_process_told_of_a_cell_stays_when_a_launcher_fails(plan, tmp_path):
    """A loss that is not finite, or memory that does not suffice, is an outcome of the study."""
    note = json.dumps({"status": "diverged", "reason": "the loss"})
    script = tmp_path / "launch.py"
    lines = "import pathlib", f"pathlib.Path({str(plan.jobs[0].note)!r}).write_text({note!r})"
    script.write_text("\n".join([*lines, "raise SystemExit(1)"]))
    plan.begin(1)
    plan.jobs[0].tell(status="failed", reason="of an earlier call")
    machine = Machine(launcher=f"{sys.executable} {script}")
    executing.execute(plan, machine, Board(plan, {}, tell=lambda _: None))
    assert plan.jobs[0].outcome() == json.loads(note)


@pytest.mark.parametrize("saved", [True, False])
def test_a_cell_that_saved_under_a_launcher_is_open(plan, tmp_path, saved):
    """A launcher whose processes left with 75 ends with a code of its own."""
    job = plan.jobs[0]
    script = tmp_path / "launch.py"
    script.write_text(
        f"import pathlib\nif {saved}: pathlib.Path({str(job.folder / 'stopped')!r}).touch()\nexit(1)"
    )
    plan.begin(1)
    job.folder.mkdir(parents=True)
    (job.folder / "stopped").touch()  # of an earlier call, and none of this one's saving
    said = []
    call = Plan(plan.study, "x", (0,), plan.out), Machine(launcher=f"{sys.executable} {script}")
    if saved:
        executing.execute(*call, Board(plan, {}, tell=said.append))
        assert "to be continued" in said[0]
    else:
        with pytest.raises(RuntimeError, match="1 of 1 cells failed"):
            executing.execute(*call, Board(plan, {}, tell=said.append))
    assert job.outcome()["status"] == ("open" if saved else "failed")


def test_a_failed_cell_is_told_of_in_its_own_words(plan):
    log = plan.out / "logs" / f"{plan.jobs[0].name}.log"
    log.parent.mkdir(parents=True)
    rule = "=" * 60
    lines = "Traceback (most recent call last):", "ValueError: the images have 4 channels", "E0101 failed"
    launcher = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: ", rule, "FAILED", rule
    log.write_text("\n".join([*lines, *launcher]))
    assert executing._last_words(plan.jobs[0]) == "ValueError: the images have 4 channels"


def test_a_cell_runs_where_files_cannot_be_locked(plan, monkeypatch, capsys):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with claimed(plan.jobs[0]) as mine:
        assert mine is not None
    assert "has no locks" in capsys.readouterr().err


@pytest.mark.slow
def test_a_command_asked_to_leave_ends_with_the_same_table(calm, data, tmp_path):  # noqa: F811
    out = tmp_path / "study"
    words = ["ablate", toy_file(tmp_path), "--data", data, "--out", str(out), "--seeds", "0", "1"]
    command = [sys.executable, "-m", "moco", *words, "--threads", "1", "--no-estimate"]
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log)
        deadline = time.monotonic() + 240
        while not list(out.glob("cells/*/journal.jsonl")):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.terminate()
        assert process.wait(60) == 75
    assert "SIGTERM" in (tmp_path / "log").read_text()
    quiet(toy(), data=data, out=out, seeds=(0, 1))
    assert (out / "table.json").read_bytes() == (calm / "table.json").read_bytes()
