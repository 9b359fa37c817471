"""Whole runs: what they leave, that they resume to the same bits, and what is refused before work starts."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import moco
from moco import recipe_file
from moco.recipe import Encoder, InfoNCE, MomentumQueue, Monitor
from moco.run_folder import locked, read_run
from moco.training.checkpoint import Checkpoints
from moco.training.observer import Observer
from moco.training.trainer import train
from tiny import save_arrays, tiny_data, tiny_recipe, tiny_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of twelve steps that nothing disturbed: its folder and its data."""
    folder = tmp_path_factory.mktemp("finished")
    data = save_arrays(folder)
    moco.pretrain(tiny_recipe(), data=data, out=folder / "run")
    return folder / "run", data


def final_state(out: Path) -> dict:
    found = Checkpoints(out / "checkpoints").load()
    assert found is not None
    return {"step": found[0], **found[1]}


def assert_same(a, b, where=""):
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def assert_same_runs(a: Path, b: Path):
    assert_same(final_state(a), final_state(b))
    assert (a / "journal.jsonl").read_bytes() == (b / "journal.jsonl").read_bytes()
    assert (a / "backbone.safetensors").read_bytes() == (b / "backbone.safetensors").read_bytes()


def test_a_run_leaves_what_it_says(finished):
    out, data = finished
    names = {"recipe.toml", "journal.jsonl", "timing.jsonl", "checkpoints", "result.json"}
    names |= {"backbone.safetensors", "curves.png", "views.png", "report.html", ".lock"}
    assert {path.name for path in out.iterdir()} == names
    values, run = recipe_file.read(out / "recipe.toml")
    assert values.views.mean is not None
    assert (run["data"], run["images"], run["channels"]) == (data, 100, 3)
    assert {"hardware", "threads", "torch", "commit", "fingerprint"} <= run.keys()
    rows = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [3, 6, 9, 12]
    assert [row["step"] for row in rows if "knn_trunk" in row] == [6, 12]
    for name in "curves.png", "views.png":
        assert np.asarray(Image.open(out / name)).std() > 5
    result = json.loads((out / "result.json").read_text())
    assert {"trained_trunk", "trained_output", "untrained_trunk", "raw_pixels"} <= result["knn"].keys()


def test_the_same_call_again_says_it_is_finished_and_changes_nothing(finished):
    out, data = finished
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.name != ".lock"}
    result = moco.pretrain(tiny_recipe(), data=data, out=out)
    assert result.steps == 12
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())


class StopAfter(Observer):
    """Raises after a step, as a crash would."""

    def __init__(self, step):
        self.step, self.said = step, []

    def begin(self, done, steps, batch_size):
        self.began = done

    def progress(self, done, row):
        if done == self.step:
            raise KeyboardInterrupt

    def row(self, row): ...

    def say(self, sentence):
        self.said.append(sentence)


@pytest.mark.parametrize("stop", range(1, 12))
def test_resuming_after_any_step_gives_the_same_bits(finished, tmp_path, stop):
    out, data = finished
    with pytest.raises(KeyboardInterrupt):
        moco.pretrain(tiny_recipe(), data=data, out=tmp_path / "run", observers=[StopAfter(stop)])
    watch = StopAfter(-1)
    moco.resume(tmp_path / "run", observers=[watch])
    assert watch.began == stop // 4 * 4 or stop < 4
    assert_same_runs(out, tmp_path / "run")


def test_a_damaged_newest_checkpoint_costs_an_interval_and_no_bit(finished, tmp_path):
    out, data = finished
    with pytest.raises(KeyboardInterrupt):
        moco.pretrain(tiny_recipe(), data=data, out=tmp_path / "run", observers=[StopAfter(9)])
    newest = max((tmp_path / "run" / "checkpoints").glob("*.pt"))
    newest.write_bytes(newest.read_bytes()[:1000])
    watch = StopAfter(-1)
    moco.resume(tmp_path / "run", observers=[watch])
    assert watch.began == 4
    assert any("is passed over" in sentence for sentence in watch.said)
    assert_same_runs(out, tmp_path / "run")


COMMAND = [sys.executable, "-m", "moco", "pretrain"]


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.mark.slow
def test_kill_9_at_random_moments_gives_the_same_bits(finished, tmp_path):
    """The full campaign of thirty is `benchmarks/kill.py`; three moments are kept under guard here."""
    out, data = finished
    recipe = tmp_path / "recipe.toml"
    recipe.write_text((out / "recipe.toml").read_text())
    run = tmp_path / "run"
    command = [*COMMAND, "--from", str(recipe), "--data", data, "--out", str(run)]
    moments = random.Random(0)
    for _ in range(3):
        journal = run / "journal.jsonl"
        before = journal.stat().st_mtime_ns if journal.exists() else 0
        process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while process.poll() is None and not (journal.exists() and journal.stat().st_mtime_ns > before):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, env=environment(), check=True, capture_output=True)
    assert_same_runs(out, run)


@pytest.mark.parametrize(
    ("arch", "precision"),
    [("mobilenet_v3_small", "float32"), ("mobilenet_v3_small", "bfloat16"), ("resnet18", "bfloat16")],
)
def test_a_library_s_network_resumes_exactly(arch, precision, tmp_path):
    """One that draws random numbers; and, in bfloat16, those whose last images are narrower than a stride."""
    data = save_arrays(tmp_path)
    network = Encoder(arch=f"torchvision/{arch}", dim=16, bn_group=4)
    values = tiny_recipe(encoder=network, epochs=1, precision=precision)
    moco.pretrain(values, data=data, out=tmp_path / "calm")
    torch.rand(7)
    with pytest.raises(KeyboardInterrupt):
        moco.pretrain(values, data=data, out=tmp_path / "run", observers=[StopAfter(5)])
    moco.resume(tmp_path / "run")
    assert_same_runs(tmp_path / "calm", tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_before_a_checkpoint_holds_it(tmp_path):
    run = tiny_run(folder=tmp_path / "checkpoints")
    original, calls = run.loss, []

    def poisoned(q, entries):
        calls.append(1)
        contrast = original(q, entries)
        return contrast._replace(loss=contrast.loss * (float("nan") if len(calls) == 6 else 1))

    run.loss = poisoned
    tmp_path.mkdir(exist_ok=True)
    with pytest.raises(FloatingPointError, match=r"the loss of step 6 is not finite \(lr .*, recipe tiny\)"):
        train(run, tmp_path)
    found = run.checkpoints.load()
    assert found is not None
    assert found[0] == 4


def test_training_on_one_recipe_does_not_depend_on_the_journal_interval(finished, tmp_path):
    out, data = finished
    moco.pretrain(tiny_recipe(journal_every=5), data=data, out=tmp_path / "run")
    a, b = final_state(out), final_state(tmp_path / "run")
    for part in "f_q", "keys", "dictionary":
        assert_same(a[part], b[part])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 128}, "has 100 images, fewer than a batch of 128"),
        (
            {"dictionary": MomentumQueue(size=100)},
            "unless own keys are masked",
        ),
    ],
)
def test_recipes_that_do_not_fit_the_images_leave_no_folder(tmp_path, change, message):
    data = save_arrays(tmp_path)
    with pytest.raises(ValueError, match=message):
        moco.pretrain(tiny_recipe(**change), data=data, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nothing_is_overwritten(finished, tmp_path):
    out, data = finished
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is no run of moco"):
        moco.pretrain(tiny_recipe(), data=data, out=tmp_path / "letters")
    with pytest.raises(
        FileExistsError, match=r"holds another run \(loss.temperature is 0.1 there, 0.2 here\)"
    ):
        moco.pretrain(tiny_recipe(loss=InfoNCE(0.2)), data=data, out=out)
    with pytest.raises(FileExistsError, match="holds another run"):
        moco.pretrain(tiny_recipe(), data="procedural", out=out)


def test_a_kill_before_the_first_file_leaves_a_folder_to_begin_in(tmp_path):
    data = save_arrays(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    (tmp_path / "run" / "recipe.toml.elsewhere-1.tmp").write_text("half")
    with pytest.raises(KeyboardInterrupt):
        moco.pretrain(tiny_recipe(), data=data, out=tmp_path / "run", observers=[StopAfter(1)])
    assert (tmp_path / "run" / "recipe.toml").exists()


def test_changed_images_are_noticed(tmp_path):
    data = save_arrays(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        moco.pretrain(tiny_recipe(), data=data, out=tmp_path / "run", observers=[StopAfter(5)])
    save_arrays(tmp_path, images=110)
    with pytest.raises(ValueError, match="are not those the run in"):
        moco.resume(tmp_path / "run")


def test_a_run_whose_images_moved_goes_on_where_they_are(finished, tmp_path):
    out, _ = finished
    data = save_arrays(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        moco.pretrain(tiny_recipe(), data=data, out=tmp_path / "run", observers=[StopAfter(5)])
    moved = Path(data).rename(tmp_path / "moved.npz")
    with pytest.raises(FileNotFoundError):
        moco.resume(tmp_path / "run")
    with pytest.raises(FileExistsError, match="with --data if its images were moved"):
        moco.pretrain(tiny_recipe(), data=str(moved), out=tmp_path / "run")
    moco.resume(tmp_path / "run", data=str(moved))
    assert_same_runs(out, tmp_path / "run")
    assert read_run(tmp_path / "run")[1]["data"] == str(moved)


def test_a_folder_is_held_by_one_process(tmp_path):
    pytest.importorskip("fcntl")
    data = save_arrays(tmp_path)

    class Intruder(StopAfter):
        def begin(self, done, steps, batch_size):
            with pytest.raises(FileExistsError, match="another process is training in"):
                moco.resume(tmp_path / "run")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        moco.pretrain(tiny_recipe(), data=data, out=tmp_path / "run", observers=[Intruder(0)])


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_holds_runs_and_says_what_it_cannot(tmp_path, monkeypatch, capsys, code):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
    assert "would not notice each other" in capsys.readouterr().err
    code = errno.EIO
    with pytest.raises(OSError, match=os.strerror(code)), locked(tmp_path / "run"):
        pass


def test_images_without_labels_train_too(tmp_path):
    arrays = tiny_data().train.pixels[:40].permute(0, 2, 3, 1).numpy()
    np.save(tmp_path / "x.npy", arrays)
    values = tiny_recipe(dictionary=MomentumQueue(size=20))
    result = moco.pretrain(values, data=str(tmp_path / "x.npy"), out=tmp_path / "run")
    assert result.knn == {}
    assert (tmp_path / "run" / "curves.png").exists()


def test_measuring_never_changes_training(finished, tmp_path):
    out, data = finished
    moco.pretrain(tiny_recipe(monitor=Monitor(every=0, k=10)), data=data, out=tmp_path / "run")
    assert_same(final_state(out)["f_q"], final_state(tmp_path / "run")["f_q"])
