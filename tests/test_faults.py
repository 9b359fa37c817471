"""What can go wrong among processes: a fault ends all of them in time, says what it was, and costs no bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from moco.processes import joined
from moco.training.checkpoint import Checkpoints
from moco.training.interruption import EXIT_CODE
from moco.training.trainer import train
from moco.world import Solo
from ranks import fork, in_double, wait
from test_world import free_port
from tiny import tiny_data, tiny_recipe, tiny_run

STEPS, EVERY = 12, 4


def run(world, folder: Path):
    values = tiny_recipe(batch=16, epochs=2, checkpoint_every=EVERY)
    run = tiny_run(values, tiny_data(), folder / "checkpoints", world=world)
    run.measure = lambda _: iter(())
    return in_double(run)


def at_step(run, number: int, act) -> None:
    """Do something when a step's batch is taken."""
    batches = run.batches

    def watched(start, stop):
        for batch in batches(start, stop):
            if batch.step == number:
                act()
            yield batch

    run.batches = watched


def attempt(folder: Path, rank: int, name: str, prepare, *, time_limit: float = 60) -> None:
    """One run of all processes, prepared by each for its fault; what it ended with is written down."""
    here = folder / name
    here.mkdir(exist_ok=True)
    started = time.monotonic()
    with joined(time_limit=time_limit) as world:
        this = run(world, here)
        prepare(this)
        try:
            journal = train(this, here)
            end = ["finished", journal.rows[-1]["loss"] if rank == 0 else None]
        except (Exception, SystemExit) as error:
            end = [type(error).__name__, str(error)]
        (here / f"{name}-{rank}.json").write_text(json.dumps([*end, time.monotonic() - started]))
        if end[0] in ("ConnectionError", "TimeoutError"):
            os._exit(1)


def scenario(folder: Path, rank: int, size: int) -> None:
    """Every fault after which the processes can still talk, then one after which they cannot."""
    torch.set_num_threads(1)
    port = int(os.environ["MASTER_PORT"])
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}
    last = rank == size - 1

    def calm(this): ...

    def poisoned(this):
        original, calls = this.loss, []

        def loss(q, entries):
            calls.append(1)
            contrast = original(q, entries)
            return (
                contrast._replace(loss=contrast.loss * float("nan")) if last and len(calls) == 6 else contrast
            )

        this.loss = loss

    def signalled(this):
        def twice():  # once with all processes of the job, and again by a launcher that passes it on
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)

        if last:  # one process alone is asked, all must leave after the same step
            at_step(this, 5, twice)

    def other_dictionary(this):
        if last:
            at_step(this, 3, lambda: this.dictionary.keys.mul_(-1))  # its newest keys are right again

    def full_disk(this):
        save, steps = this.checkpoints.save, []

        def failing(step, state):
            steps.append(step)
            if len(steps) == 2:
                raise OSError(28, "No space left on device")
            save(step, state)

        this.checkpoints.save = failing

    def hung(this):
        if last:
            at_step(this, 6, lambda: time.sleep(22))

    cases = [calm, poisoned, signalled, calm, other_dictionary, full_disk, hung]
    names = ["calm", "poisoned", "signalled", "signalled", "other", "full", "hung"]
    for i, (name, prepare) in enumerate(zip(names, cases, strict=True)):
        os.environ["MASTER_PORT"] = str(port + i)
        attempt(folder, rank, name, prepare, time_limit=10 if name == "hung" else 60)
        if name == "signalled" and prepare is signalled:
            path = folder / name / f"{name}-{rank}.json"
            path.rename(folder / name / f"stopped-{rank}.json")


def lose(folder: Path, rank: int) -> None:
    """The last process is gone without a word."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    attempt(folder, rank, "lost", lambda this: at_step(this, 6, lambda: rank and os._exit(9)))


def main(folder: Path) -> None:
    wait(fork(2, lambda rank: scenario(folder, rank, 2)))
    os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 20)
    wait(fork(2, lambda rank: lose(folder, rank)))


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    environment = os.environ | {
        "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, __file__, str(folder)],
        env=environment, timeout=280, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (folder / "lost" / "lost-0.json").exists(), done.stderr
    return folder


def ends(folder: Path, name: str, kind: str | None = None):
    return [json.loads((folder / name / f"{kind or name}-{rank}.json").read_text()) for rank in (0, 1)]


def newest(folder: Path, name: str):
    found = Checkpoints(folder / name / "checkpoints").load()
    assert found is not None
    return found


def assert_same_end(folder: Path, name: str) -> None:
    (_, ours), (_, calm) = newest(folder, name), newest(folder, "calm")
    for part in "f_q", "keys", "dictionary":
        for key, value in calm[part].items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(ours[part][key], value), key
    rows = [(folder / n / "journal.jsonl").read_bytes() for n in (name, "calm")]
    assert rows[0] == rows[1]


def test_a_loss_that_is_not_finite_on_one_process_stops_all_and_names_the_step(faults):
    for kind, message, _ in ends(faults, "poisoned"):
        assert kind == "FloatingPointError"
        assert message.startswith("the loss of step 6 is not finite (lr ")
    assert newest(faults, "poisoned")[0] == 4


def test_a_signal_to_one_process_saves_the_same_step_on_all_and_the_run_goes_on_to_the_same_bits(faults):
    for kind, message, _ in ends(faults, "signalled", "stopped"):
        assert (kind, message) == ("SystemExit", str(EXIT_CODE))
    assert [end[0] for end in ends(faults, "signalled")] == ["finished", "finished"]
    assert_same_end(faults, "signalled")


def test_processes_that_hold_different_queues_are_stopped(faults):
    for kind, message, _ in ends(faults, "other"):
        assert kind == "RuntimeError"
        assert "hold different weights or queues after step 4" in message


def test_a_full_disk_costs_a_checkpoint_and_no_bit(faults):
    assert [end[0] for end in ends(faults, "full")] == ["finished", "finished"]
    assert_same_end(faults, "full")
    steps = sorted(path.name for path in (faults / "full" / "checkpoints").glob("*.pt"))
    assert steps == ["step-000000004.pt", "step-000000012.pt"]


def test_a_hung_process_ends_the_run_within_the_limit_and_is_named(faults):
    kind, message, seconds = json.loads((faults / "hung" / "hung-0.json").read_text())
    assert kind == "TimeoutError"
    assert "process 0 of 2 waited for" in message
    assert "at step 7 for" in message
    assert "the time limit is 10 s; not heard from: process 1" in message
    assert seconds < 60
    assert newest(faults, "hung")[0] == 4


def test_a_lost_process_ends_the_others_at_once(faults):
    kind, message, _ = json.loads((faults / "lost" / "lost-0.json").read_text())
    assert kind == "ConnectionError"
    assert "process 0 of 2 waited for" in message
    assert "at step 7 and lost another process" in message
    assert not (faults / "lost" / "lost-1.json").exists()
    assert newest(faults, "lost")[0] == 4


def test_a_run_of_two_goes_on_as_one(faults, tmp_path):
    """4 → 2 → 1 is in `benchmarks/elastic.py`; here, the checkpoint of two processes in one."""
    for name in "lost", "alone":
        (tmp_path / name).mkdir()
    for path in (faults / "lost" / "checkpoints").iterdir():
        (tmp_path / "lost" / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "lost" / "checkpoints" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "lost" / "journal.jsonl").write_bytes((faults / "lost" / "journal.jsonl").read_bytes())
    said = []
    this = run(Solo(), tmp_path / "lost")
    this.checkpoints.say = said.append
    rows = train(this, tmp_path / "lost").rows
    assert any("written with processes 2, now 1" in sentence for sentence in said)
    alone = train(run(Solo(), tmp_path / "alone"), tmp_path / "alone").rows
    assert [row["step"] for row in rows] == [row["step"] for row in alone] == [3, 6, 9, 12]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in alone], abs=2e-6)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
