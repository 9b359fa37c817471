"""Fine-tuning in two processes gives what one gives, from the command line to the measured table."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import moco.cli.transfer  # noqa: F401  (shared by the processes)
from moco.cli import main
from moco.recipes.transfer import get_transfer
from moco.transfer_build import build_model, open_sets
from moco.transfer_measure import measure
from moco.transfer_recipe import Trunk
from moco.transfer_start import open_start
from moco.world import Solo
from ranks import fork, wait
from scenes import write_cityscapes, write_coco, write_voc

COMMON = (
    "--iterations 4 --batch 2 --schedule.warmup 1 --precise 2 --journal-every 1 --checkpoint-every 2 "
    "--trunk.arch resnet10 --trunk.width 4 --device cpu --images.short 480 --images.factor 0.1 "
    "--heads.train-before 40 --heads.train-after 20 --heads.test-before 40 --heads.test-after 10 "
    "--heads.regions 8 --json"
)
TASKS = {
    "voc-c4": "--train VOC2007:trainval",
    "coco-fpn-1x": "--heads.channels 8 --heads.hidden 16 --heads.branch 8",
}


def process(rank: int, words: list[str]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    main(words)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_two_processes_are_one(task, tmp_path):
    pytest.importorskip("faster_coco_eval")
    from test_world import free_port

    if task == "voc-c4":
        data = write_voc(tmp_path / "data", {"trainval": 8, "test": 3})
    else:
        data = write_coco(tmp_path / "data", {"train2017": 8, "val2017": 3})
    words = ["transfer", task, "--init", "random", "--data", str(data), *COMMON.split(), *TASKS[task].split()]
    with pytest.raises(SystemExit) as left:
        main([*words, "--out", str(tmp_path / "one")])
    assert left.value.code == 0
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, *words, "--out", str(tmp_path / "two")],
        env=os.environ | address, timeout=280, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two = (_rows(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == 4
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=2e-3, abs=2e-4)
    whole, shared = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert shared["mean"] == pytest.approx(whole["mean"], abs=0.5, nan_ok=True)


class Share(Solo):
    """One of several processes that are asked one after the other, the first one last."""

    def __init__(self, rank: int, size: int, others: list):
        self.place, self.count, self.others = rank, size, others

    @property
    def rank(self):
        return self.place

    @property
    def size(self):
        return self.count

    def assemble(self, own):
        if self.place:
            self.others.insert(0, own)
            return []
        self.whole = own
        return [own, *self.others]

    def first(self, act):
        return {} if self.place else act()


SPLITS = {
    "voc-c4": (lambda root: write_voc(root, {"trainval": 2, "test": 7}), "VOC2007:trainval"),
    "coco-fpn-1x": (lambda root: write_coco(root, {"train2017": 2, "val2017": 7}), "train2017"),
    "cityscapes": (lambda root: write_cityscapes(root, {"train": 2, "val": 7}), "train"),
    "voc-segmentation": (lambda root: write_voc(root, {"train": 2, "val": 7}, "VOC2012"), "VOC2012:train"),
}


@pytest.mark.parametrize("task", SPLITS)
def test_shares_of_a_measurement_make_the_whole(task, tmp_path):
    pytest.importorskip("faster_coco_eval")
    make, train = SPLITS[task]
    base = get_transfer(task)
    heads = {"channels": 8, "hidden": 16, "branch": 8 if base.heads.masks else None, "threshold": 0.0}
    counts = {"train_before": 40, "train_after": 20, "test_before": 40, "test_after": 10, "most": 10}
    values = replace(
        base, train=(train,), trunk=Trunk("resnet10", 4), images=replace(base.images, factor=0.5, crop=33),
        heads=replace(base.heads, **heads, **counts),
    )  # fmt: skip
    sets = open_sets(values, str(make(tmp_path)))
    start = open_start("random", values.trunk)
    torch.manual_seed(0)
    model = build_model(values, start, sets.train, Solo(), 0)
    here = torch.device("cpu")
    alone = Share(0, 1, [])
    whole = measure(values, model, sets.test, start.pixels, here, alone)
    others: list = []
    for rank in 2, 1:
        away = measure(values, model, sets.test, start.pixels, here, Share(rank, 3, others))
        assert not away.rows
        assert not away.shown
    assert len(others) == 2
    first = Share(0, 3, others)
    shared = measure(values, model, sets.test, start.pixels, here, first)
    assert shared.table == pytest.approx(whole.table, abs=0, nan_ok=True)
    assert shared.rows == whole.rows
    assert all(shared.rows.values())
    for one, other in zip(alone.whole.boxes, first.whole.boxes, strict=True):
        assert len(one)
        assert torch.equal(one.boxes, other.boxes)
    seen = [found.whole.judges for found in (alone, first)]
    if task == "cityscapes":
        assert seen[0]["mask "].seen == seen[1]["mask "].seen
        assert all(any(one.missed) and one.objects for one in seen[0]["mask "].seen[:1])
    if task == "voc-segmentation":
        assert torch.equal(seen[0][""].counts, seen[1][""].counts)
    assert [example.image_id for example, _ in shared.shown] == [e.image_id for e in sets.test.examples]


def _rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "trial-0" / "journal.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(any(wait(fork(2, lambda rank: process(rank, sys.argv[1:])))))
