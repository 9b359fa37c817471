import json
import os
import pickle

import pytest
import torch

from moco.files import write_atomically
from moco.training.checkpoint import Checkpoints


def filled(folder, steps=(10, 20, 30), keep=3):
    said = []
    checkpoints = Checkpoints(folder, keep=keep, say=said.append)
    for step in steps:
        checkpoints.save(step, {"value": torch.full((50,), float(step)), "step": step})
    return checkpoints, said


def test_newest_comes_back(tmp_path):
    checkpoints, said = filled(tmp_path)
    step, state = checkpoints.load()
    assert step == state["step"] == 30
    assert (state["value"] == 30).all()
    assert not said


def test_only_the_newest_are_kept(tmp_path):
    filled(tmp_path, steps=range(1, 8), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"step-{step:09d}.{kind}" for step in (6, 7) for kind in ("json", "pt")
    ]


def test_a_damaged_checkpoint_of_a_later_step_pushes_no_whole_one_out(tmp_path):
    checkpoints, _ = filled(tmp_path, steps=(500,), keep=1)
    (tmp_path / "step-000001000.pt").write_bytes(b"without its manifest")  # of a kill between two renames
    checkpoints.save(700, {"step": 700})
    assert checkpoints.load()[1] == {"step": 700}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000700.json", "step-000000700.pt"]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "bytes of"),
        (flip_a_bit, "checksum does not match"),
        (lambda path: path.with_suffix(".json").unlink(), "manifest is missing"),
        (lambda path: path.with_suffix(".json").write_text("{"), "manifest is missing or unreadable"),
        (lambda path: path.write_bytes(b""), "0 bytes of"),
    ],
)
def test_a_damaged_newest_falls_back_to_the_one_before_and_says_so(tmp_path, damage, reason):
    checkpoints, said = filled(tmp_path)
    damage(tmp_path / "step-000000030.pt")
    step, _ = checkpoints.load()
    assert step == 20
    assert len(said) == 1
    assert "step-000000030.pt is passed over" in said[0]
    assert reason in said[0]


@pytest.mark.parametrize("lost", ["*.json", "*.pt", ""])
def test_no_run_begins_anew_over_checkpoints_that_cannot_be_read(tmp_path, lost):
    """As after a copy that left files out, or a passing fault of a network disk."""
    checkpoints, said = filled(tmp_path)
    for path in tmp_path.glob(lost or "*.pt"):
        path.unlink() if lost else truncate(path)
    with pytest.raises(OSError, match=r"none of the 3 checkpoints in .* is whole; nothing was changed"):
        checkpoints.load()
    assert len(said) == 3
    assert "trying the one before" in said[0]
    assert "trying" not in said[-1]


def test_before_the_first_checkpoint_there_is_none(tmp_path):
    assert Checkpoints(tmp_path / "absent").load() is None
    checkpoints, _ = filled(tmp_path, steps=(1,))
    (tmp_path / "step-000000001.json").unlink()  # killed between the two files
    assert checkpoints.load() is None


def test_what_a_kill_left_aside_goes_with_the_next(tmp_path):
    checkpoints, _ = filled(tmp_path)
    (tmp_path / "step-000000040.pt.elsewhere-1.tmp").write_bytes(b"half")
    checkpoints.save(50, {"value": torch.zeros(1)})
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (OSError(28, "No space left on device"), r"No space left on device: '.*step-000000040\.pt'$"),
        (OSError("the link is down"), r"^the link is down$"),  # a name would replace its words
    ],
)
def test_a_kill_while_writing_leaves_the_old_file(tmp_path, monkeypatch, fault, says):
    checkpoints, _ = filled(tmp_path)

    def full(_):
        raise fault

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=says):
        checkpoints.save(40, {"value": torch.zeros(1)})
    monkeypatch.undo()
    assert checkpoints.load()[0] == 30
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(("first", "left"), [(10, "that of step 20 stays"), (30, "there is no earlier one")])
def test_a_checkpoint_that_cannot_be_written_says_what_there_is(tmp_path, monkeypatch, first, left):
    checkpoints = Checkpoints(tmp_path / "checkpoints")

    def full(_):
        raise OSError(28, "No space left on device")

    for step in range(first, 30, 10):
        assert checkpoints.attempt(step, {}) == ""
    monkeypatch.setattr(os, "fsync", full)
    told = checkpoints.attempt(30, {})
    assert told.startswith("the checkpoint of step 30 could not be written ([Errno 28] No space left")
    assert told.endswith(f"); {left}")


def test_a_stray_half_written_file_is_ignored(tmp_path):
    checkpoints, said = filled(tmp_path)
    (tmp_path / "step-000000040.pt.elsewhere-1.tmp").write_bytes(b"half")
    assert checkpoints.load()[0] == 30
    assert not said


def test_copies_that_a_tool_made_of_a_checkpoint_are_none(tmp_path):
    checkpoints, said = filled(tmp_path)
    for path in list(tmp_path.iterdir()):
        path.with_stem(f"{path.stem} (1)").write_bytes(path.read_bytes())
    assert checkpoints.load()[0] == 30
    assert not said


def test_pickled_code_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": Evil()})
    with pytest.raises(pickle.UnpicklingError):
        checkpoints.load()
    assert not (tmp_path / "owned").exists()


def test_manifest_names_what_it_was_written_with(tmp_path):
    filled(tmp_path, steps=(5,))
    manifest = json.loads((tmp_path / "step-000000005.json").read_text())
    assert manifest["step"] == 5
    assert manifest["torch"] == torch.__version__
    assert manifest["threads"] == torch.get_num_threads()


@pytest.mark.parametrize(("name", "value"), [("threads", 64), ("opencv", "3.1"), ("torch", "2.0")])
def test_other_circumstances_are_said(name, value, tmp_path):
    checkpoints, said = filled(tmp_path, steps=(5,))
    path = tmp_path / "step-000000005.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    assert checkpoints.load() is not None
    assert len(said) == 1
    assert f"written with {name} {value}" in said[0]


def test_atomic_writing_replaces_whole_files(tmp_path):
    path = tmp_path / "x"
    for content in b"old", b"new and longer":
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["x"]
