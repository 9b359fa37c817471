"""Each of the paper's tasks from the command line: trained, killed and resumed, measured, put in a table."""

import json
import os
import signal
import tomllib
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from commands import call
from moco import recipe_file
from moco.recipes.transfer import TRANSFER_RECIPES, get_transfer
from moco.training.checkpoint import Checkpoints
from moco.transfer_build import learning_rate
from moco.transfer_recipe import Schedule, TransferRecipe
from moco.transfer_run import resume_transfer, transfer
from scenes import write_cityscapes, write_coco, write_voc
from transfers import COMMON, HEADS, TINY, Stop, voc_data

PYRAMID = f"{HEADS} --heads.channels 8 --heads.hidden 16 --heads.branch 8"


TASKS = {
    "voc-c4": (voc_data, f"{HEADS} --train VOC2007:trainval", ("AP50", "AP", "AP75")),
    "voc-dc5": (
        voc_data,
        f"{HEADS} --train VOC2007:trainval --heads.channels 8 --heads.hidden 16",
        ("AP50", "AP", "AP75"),
    ),
    "coco-c4-1x": (
        lambda root: write_coco(root, {"train2017": 6, "val2017": 3}),
        f"{HEADS} --heads.branch 8",
        ("box AP", "mask AP"),
    ),
    "coco-fpn-1x": (
        lambda root: write_coco(root, {"train2017": 6, "val2017": 3}), PYRAMID, ("box AP", "mask AP")
    ),
    "keypoints": (
        lambda root: write_coco(root, {"train2017": 6, "val2017": 3}, "keypoints"),
        PYRAMID,
        ("keypoint AP", "box AP"),
    ),
    "densepose": (
        lambda root: write_coco(
            root, {"train": 6, "valminusminival": 2, "minival": 3}, "densepose",
            folders={"train": "train2014", "valminusminival": "val2014", "minival": "val2014"},
        ),
        PYRAMID,
        ("box AP",),
    ),
    "lvis": (
        lambda root: write_coco(
            root, {"v0.5_train": 6, "v0.5_val": 3}, "lvis",
            folders={"v0.5_train": "train2017", "v0.5_val": "val2017"},
        ),
        f"{PYRAMID} --heads.most 20",
        ("mask AP", "box AP", "box APf"),
    ),
    "cityscapes": (lambda root: write_cityscapes(root, {"train": 6, "val": 3}), PYRAMID, ("mask AP",)),
    "voc-segmentation": (
        lambda root: write_voc(root, {"train": 6, "val": 3}, "VOC2012"),
        "--train VOC2012:train --images.crop 33 --heads.channels 8",
        ("mIoU",),
    ),
    "cityscapes-segmentation": (
        lambda root: write_cityscapes(root, {"train": 6, "val": 3}),
        "--images.crop 33 --heads.channels 8",
        ("mIoU", "accuracy"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_every_task_trains_and_is_measured_on_its_own_layout(task, tmp_path, capsys):
    pytest.importorskip("faster_coco_eval")
    make, flags, metrics = TASKS[task]
    data, out = make(tmp_path / "data"), tmp_path / "run"
    call("transfer", task, "--init", "random", "--data", data, "--out", out, "--json",
         *COMMON.split(), *flags.split())  # fmt: skip
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert set(metrics) <= set(result["mean"])
    assert all(0 <= value <= 100 for value in result["mean"].values())
    assert (result["task"], result["row"]) == (task, "random")
    assert (out / "trial-0/found.png").stat().st_size > 5000
    assert "images" in shown.err
    rows = [json.loads(line) for line in (out / "trial-0/journal.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 3]
    parts = sum(value for name, value in rows[-1].items() if name not in ("step", "loss", "lr"))
    assert rows[-1]["loss"] == pytest.approx(parts, abs=1e-4)
    if task == "densepose":
        assert tomllib.loads((out / "recipe.toml").read_text())["run"]["images"] == 8
        assert not any(name.startswith("GPS") for name in result["mean"])
        assert "box AP" in result["headline"]


@pytest.mark.parametrize("after", [3, 5])
def test_a_killed_run_ends_with_the_same_bits(transferred, start, tmp_path, after):
    root, data, whole = transferred
    out, stop = tmp_path / "run", Stop(after)
    with pytest.raises(KeyboardInterrupt):
        transfer(TINY, init=str(start), data=data, out=out, device="cpu", observers=[stop])
    watch = Stop(-1)
    result = transfer(TINY, init=str(start), data=data, out=out, device="cpu", observers=[watch])
    assert any(f"resuming after step {after // 2 * 2} of 8" in sentence for sentence in watch.said)
    names = ["step-000000008.pt"]
    for name in names:
        one, other = (
            torch.load(folder / "trial-0/checkpoints" / name, weights_only=True)
            for folder in (out, root / "run")
        )
        assert all(torch.equal(one["model"][key], value) for key, value in other["model"].items())
    assert (out / "trial-0/journal.jsonl").read_bytes() == (root / "run/trial-0/journal.jsonl").read_bytes()
    assert result.trials[0] == whole.trials[0]


def test_the_seconds_of_a_resumed_trial_are_all_of_its(transferred, start, tmp_path):
    _, data, _ = transferred
    with pytest.raises(KeyboardInterrupt):
        transfer(TINY, init=str(start), data=data, out=tmp_path, device="cpu", observers=[Stop(3)])
    checkpoints = Checkpoints(tmp_path / "trial-0/checkpoints")
    step, state = checkpoints.load()
    assert 0 < state["seconds"] < 100
    checkpoints.save(step, state | {"seconds": 1000.0})
    result = transfer(TINY, init=str(start), data=data, out=tmp_path, device="cpu")
    assert 1000 < result.seconds < 1100


def test_a_signal_saves_and_leaves_and_the_run_goes_on_with_the_same_bits(transferred, start, tmp_path):
    root, data, whole = transferred

    class Ask(Stop):
        def progress(self, done, row):
            if done == self.after:
                os.kill(os.getpid(), signal.SIGTERM)

    out, ask = tmp_path / "run", Ask(3)
    with pytest.raises(SystemExit) as left:
        transfer(TINY, init=str(start), data=data, out=out, device="cpu", observers=[ask])
    assert left.value.code == 75
    assert (out / "stopped").exists()
    assert "SIGTERM: saved step 4; the same command goes on from there" in ask.said
    watch = Stop(-1)
    result = transfer(TINY, init=str(start), data=data, out=out, device="cpu", observers=[watch])
    assert any("resuming after step 4 of 8" in sentence for sentence in watch.said)
    assert not (out / "stopped").exists()
    assert (out / "trial-0/journal.jsonl").read_bytes() == (root / "run/trial-0/journal.jsonl").read_bytes()
    assert result.trials[0] == whole.trials[0]


def test_a_full_disk_at_a_checkpoint_costs_nothing(transferred, start, tmp_path, monkeypatch):
    _, data, whole = transferred
    save = Checkpoints.save

    def full(this, step, state):
        if step == 4:
            raise OSError(28, "No space left on device")
        save(this, step, state)

    monkeypatch.setattr(Checkpoints, "save", full)
    watch = Stop(-1)
    result = transfer(TINY, init=str(start), data=data, out=tmp_path / "run", device="cpu", observers=[watch])
    assert any("step 4 could not be written" in sentence for sentence in watch.said)
    assert result.trials[0] == whole.trials[0]


def test_trials_have_seeds_of_their_own_and_can_be_added(transferred, start):
    root, data, result = transferred
    journals = [(root / f"run/trial-{n}/journal.jsonl").read_text() for n in (0, 1)]
    assert journals[0] != journals[1]
    assert set(result.std) == set(result.mean)
    watch = Stop(-1)
    more = resume_transfer(root / "run", trials=3, device="cpu", observers=[watch])
    assert len(more.trials) == 3
    assert more.trials[:2] == result.trials
    assert sum("is finished already" in sentence for sentence in watch.said) == 2
    again = transfer(TINY, init=str(start), data=data, out=root / "run", trials=1, device="cpu")
    assert again.trials == more.trials  # one was asked for, and none of the finished ones is dropped
    assert len(json.loads((root / "run/result.json").read_text())["trials"]) == 3
    with pytest.raises(ValueError, match="trials must be at least 1, got 0"):
        resume_transfer(root / "run", trials=0, device="cpu")


def test_a_run_whose_data_has_changed_is_refused(start, tmp_path):
    data, out = voc_data(tmp_path / "data"), tmp_path / "run"
    values = replace(TINY, iterations=2, schedule=Schedule(warmup=1), precise=0)
    transfer(values, init=str(start), data=data, out=out, device="cpu")
    home = data / "VOCdevkit/VOC2007"
    annotation, mask = home / "Annotations/test001.xml", home / "JPEGImages/trainval002.jpg"
    for path, old, new in (annotation, b"<xmin>", b"<xmin>1"), (mask, b"", b""):
        before = path.read_bytes()
        path.write_bytes(before.replace(old, new, 1) if old else before + b" ")
        with pytest.raises(FileExistsError, match="was begun on other images or annotations than"):
            transfer(values, init=str(start), data=data, out=out, trials=2, device="cpu")
        path.write_bytes(before)
    assert len(transfer(values, init=str(start), data=data, out=out, trials=2, device="cpu").trials) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("transfer", "moco transfer takes a task first: voc-c4"),
        ("transfer voc-c9 --init random", "there is no transfer recipe 'voc-c9'"),
        ("transfer voc-c4 --data {data} --out {out}", "--init"),
        ("transfer voc-c4 --init {tmp}/none --data {data} --out {out}", "there is no file {tmp}/none"),
        ("transfer voc-c4 --init {tmp} --data {data} --out {out}", "is no finished run: there is no"),
        (
            "transfer voc-c4 --init supervised:{tmp}/x.pth --data {data} --out {out}",
            "there is no {tmp}/x.pth",
        ),
        ("transfer voc-c4 --init supervised:{bad} --data {data} --out {out}", "does not hold the trunk of"),
        ("transfer voc-c4 --init random --data {tmp}/none --out {out}", "there is no {tmp}/none/VOCdevkit"),
        ("transfer voc-c4 --init random --data {data} --out {out}", "VOCdevkit/VOC2012"),
        (
            "transfer voc07-c4 --init random --data {data} --out {out}",
            "fewer than a batch of 16; lower --batch",
        ),
        ("transfer voc-c4 --init random --data {data} --out {taken}", "nothing was overwritten"),
        ("transfer voc07-c4 --init random --data {data} --out {run}", "holds another run"),
        ("transfer voc-c4 --init random --data {data} --out {out} --lr 0", "lr must be above 0, got 0"),
        ("transfer voc-c4 --init random --data {data} --out {out} --iterations 50", "--schedule.warmup 5"),
        (
            "transfer voc-c4 --init random --data {data} --out {out} --heads.masks",
            "VOC's boxes have no masks",
        ),
        (
            "transfer voc-c4 --init random --trunk.arch torchvision/mobilenet_v3_small "
            "--data {data} --out {out}",
            "MobileNetV3 has no conv1: detection and segmentation take residual networks",
        ),
        ("transfer voc-c4 --init random --data {data} --out {out} --trials 0", "trials must be at least 1"),
        ("transfer coco-fpn-1x --init random --data {data} --out {out} --heads.model c5", "c5"),
        ("transfer --resume {tmp}/none", "holds no run"),
        ("transfer table {tmp}", "holds no finished transfer run"),
    ],
)
def test_wrong_calls_end_with_2_and_one_sentence(transferred, tmp_path, capsys, words, message):
    root, data, _ = transferred
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").write_text("mine")
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "bad.safetensors")
    places = {"tmp": tmp_path, "data": data, "out": tmp_path / "out", "taken": tmp_path / "taken",
              "run": root / "run", "bad": tmp_path / "bad.safetensors"}  # fmt: skip
    call(*words.format(**places).split(), expect=2)
    shown = capsys.readouterr()
    assert message.format(**places) in " ".join(shown.err.split()).replace("│ ", "")
    assert "Traceback" not in shown.err
    assert not shown.out
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_not_finite_ends_the_run(transferred, tmp_path, capsys):
    _, data, _ = transferred
    flags = [*COMMON.split(), *HEADS.split(), "--train", "VOC2007:trainval", "--data", data]
    call("transfer", "voc-c4", "--init", "random", "--out", tmp_path / "run", *flags,
         "--lr", "1e30", "--iterations", "9", expect=1)  # fmt: skip
    assert "the loss is not finite at step" in capsys.readouterr().err


def test_learning_rate_rises_and_drops_as_the_paper_says():
    values = get_transfer("voc-c4")
    assert learning_rate(values, 0) == pytest.approx(0.02 * 0.001)
    assert learning_rate(values, 50) == pytest.approx(0.02 * (0.5 + 0.0005))
    assert learning_rate(values, 100) == learning_rate(values, 17_999) == pytest.approx(0.02)
    assert learning_rate(values, 18_000) == learning_rate(values, 21_999) == pytest.approx(0.002)
    assert learning_rate(values, 22_000) == learning_rate(values, 23_999) == pytest.approx(0.0002)
    for name, steps in {"coco-c4-2x": (120_000, 160_000), "coco-fpn-6x": (480_000, 520_000),
                        "voc-segmentation": (21_000, 27_000), "cityscapes": (18_000,)}.items():  # fmt: skip
        values = get_transfer(name)
        for step in steps:
            before, after = (learning_rate(values, s) for s in (step - 1, step))
            assert after == pytest.approx(before / 10)
    assert learning_rate(get_transfer("cityscapes"), 5000) == pytest.approx(0.01)  # batch 8 of 16
    assert learning_rate(get_transfer("voc-segmentation"), 0) == pytest.approx(0.003)


@pytest.mark.parametrize("name", TRANSFER_RECIPES)
def test_recipes_survive_a_file(name):
    values = get_transfer(name)
    assert recipe_file.from_dict(TransferRecipe, recipe_file.to_dict(values)) == values
    assert values.name == name
