"""Runs whose surroundings change: other machines, copies, trackers and disks that fail, late signals."""

import os
import resource
import shutil
import signal

import pytest

import moco
from moco import launch, processor
from moco.cli import main
from moco.data.reading import Reading
from moco.finish import Result
from moco.run_folder import at_work, read_run
from moco.training.journal import Journal, read
from moco.training.observer import Audience
from moco.world import Solo
from shard_images import image
from test_run import StopAfter, assert_same_runs, finished, save_arrays  # noqa: F401
from tiny import tiny_recipe


def test_the_same_command_goes_on_where_auto_would_be_another_precision(tmp_path, monkeypatch):
    """As when a scheduler puts a job that it stopped on another kind of machine."""
    data, values = save_arrays(tmp_path), tiny_recipe(precision="auto")
    monkeypatch.setattr(processor, "cpu_info", lambda: "avx512_bf16")
    with pytest.raises(KeyboardInterrupt):
        moco.pretrain(values, data=data, out=tmp_path / "run", observers=[StopAfter(5)])
    monkeypatch.setattr(processor, "cpu_info", lambda: "")
    moco.pretrain(values, data=data, out=tmp_path / "run")
    assert read_run(tmp_path / "run")[0].precision == "bfloat16"
    with pytest.raises(FileExistsError, match="precision is bfloat16 there, float32 here"):
        moco.pretrain(tiny_recipe(precision="float32"), data=data, out=tmp_path / "run")


class Tracker(StopAfter):
    """Its server goes away after some rows."""

    def __init__(self, rows):
        super().__init__(-1)
        self.rows = rows

    def row(self, row):
        self.rows -= 1
        if self.rows == 0:
            raise ConnectionError("the server is away")


def test_a_tracker_that_fails_does_not_end_the_run(finished, tmp_path):  # noqa: F811
    out, data = finished
    tracker, watch = Tracker(2), StopAfter(-1)
    moco.pretrain(tiny_recipe(), data=data, out=tmp_path / "run", observers=[tracker, watch])
    assert_same_runs(out, tmp_path / "run")
    assert tracker.rows == 0
    (told,) = [sentence for sentence in watch.said if "told nothing more" in sentence]
    assert "Tracker" in told
    assert "the server is away" in told


@pytest.mark.parametrize(("asked_to_leave", "code"), [(False, 0), (True, 75)])
def test_a_tracker_that_cannot_be_ended_leaves_the_exit_code_alone(
    tmp_path, monkeypatch, capsys, asked_to_leave, code
):
    class Away(Tracker):
        def __init__(self):
            super().__init__(-1)

        def __enter__(self):
            return self

        def __exit__(self, *raised):
            raise ConnectionError("the server is away")

    def pretrain(*_, **__):
        if asked_to_leave:
            raise SystemExit(75)
        return Result("run", 12, 1.0, 0.5, {}, 1.0)

    monkeypatch.setattr(launch, "pretrain", pretrain)
    monkeypatch.setattr("moco.cli.pretrain._records", lambda _: [Away()])
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", "cpu", "--data", "x", "--out", str(tmp_path / "run")])
    assert stopped.value.code == code
    assert "Away could not be ended: the server is away" in capsys.readouterr().err


def test_trackers_that_fail_together_do_not_end_the_run():
    """The disk of both is full; the second fails when it is told of the first."""

    class Mute(Tracker):
        def say(self, sentence):
            raise ConnectionError("nobody listens")

    watch = StopAfter(-1)
    audience = Audience([Tracker(1), Mute(1), watch])
    audience.row({"step": 1})
    assert audience.observers == [watch]
    assert [sentence.split()[0] for sentence in watch.said] == ["Mute", "Tracker"]


def test_a_finished_run_that_was_copied_tells_of_itself(finished, tmp_path):  # noqa: F811
    out, data = finished
    copy = shutil.copytree(out, tmp_path / "copy")
    (copy / "report.html").unlink()  # as after a kill while it was written
    again = moco.resume(copy, data=data)
    assert again.out == str(copy)
    assert (copy / "report.html").exists()


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGUSR1], ids=lambda kind: kind.name)
def test_a_run_that_is_asked_to_leave_while_it_finishes_goes_on(finished, tmp_path, monkeypatch, kind):  # noqa: F811
    """The last measurements of a large set take minutes."""
    out, data = finished
    with monkeypatch.context() as patch:
        patch.setattr(launch, "finish", lambda *_: os.kill(os.getpid(), kind))
        with pytest.raises(SystemExit) as stopped:
            moco.pretrain(tiny_recipe(), data=data, out=tmp_path / "run")
    assert stopped.value.code == 75
    assert (tmp_path / "run" / "stopped").exists()
    moco.pretrain(tiny_recipe(), data=data, out=tmp_path / "run")
    assert_same_runs(out, tmp_path / "run")
    assert not (tmp_path / "run" / "stopped").exists()


def test_a_note_that_finds_no_room_leaves_the_exit_code_alone(tmp_path):
    (tmp_path / "stopped").mkdir()
    with pytest.raises(SystemExit) as stopped, at_work(tmp_path, first=True):
        raise SystemExit(75)
    assert stopped.value.code == 75


def test_rows_that_a_resumed_run_keeps_are_on_the_disk_before_they_take_the_place_of_the_old(
    tmp_path, monkeypatch
):
    """Else a reboot may find a journal without any beside checkpoints that are whole."""
    for name in "journal", "timing":
        (tmp_path / f"{name}.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    inodes = set()
    monkeypatch.setattr(os, "fsync", lambda file: inodes.add(os.fstat(file).st_ino))
    Journal(tmp_path, 1)
    assert {os.stat(tmp_path / f"{name}.jsonl").st_ino for name in ("journal", "timing")} <= inodes


def test_a_disk_that_was_full_costs_no_row_of_either_file(tmp_path, monkeypatch):
    journal = Journal(tmp_path, 0)

    def full(_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        journal.write({"step": 1, "unreadable": "a.png", "reason": "cut off"})
    journal.write({"step": 2, "unreadable": "b.png", "reason": "cut off"})
    listed = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    assert ["a.png" in listed[0], "b.png" in listed[1], len(listed)] == [True, True, 2]
    assert [row["step"] for row in Journal(tmp_path, 2).rows] == [1, 2]


def test_a_disk_that_was_full_costs_no_later_time(tmp_path):
    journal = Journal(tmp_path, 0)
    journal.write_timing({"step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "timing.jsonl").stat().st_size + 5, before[1]))
    try:
        journal.write_timing({"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    journal.write_timing({"step": 3})
    assert [row["step"] for row in read(tmp_path / "timing.jsonl")] == [1, 3]


def test_only_the_first_process_needs_the_run_folder(tmp_path):
    """The quarantine list lies in it; the others may be on other machines."""
    data = tmp_path / "images"
    for name in "a.png", "b.png", "c.png":
        data.mkdir(exist_ok=True)
        (data / name).write_bytes(image(ord(name[0])))

    class Second(Solo):
        def first(self, act):
            return frozenset(["b.png"])  # what the first one read

    opened = launch._open_once((str(data), str(tmp_path / "elsewhere.jsonl")), Reading(), Second())
    assert len(opened.train) == 2
