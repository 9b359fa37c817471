"""Fine-tuning in two processes gives what one gives, from the command line to the measured table."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import moco.cli.transfer
import moco.transfer_run  # noqa: F401  (shared by the processes)
from moco.cli import main
from ranks import fork, wait
from scenes import write_coco, write_voc

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


def _rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "trial-0" / "journal.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(any(wait(fork(2, lambda rank: process(rank, sys.argv[1:])))))
