"""Studies run: every study end to end, killed anywhere, failed cells, tables, figures, the command."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from moco import processor
from moco.ablate import cell as cells
from moco.ablate import execute as executing
from moco.ablate.conduct import run_study
from moco.ablate.estimate import parameters
from moco.ablate.execute import Machine
from moco.ablate.plan import Plan, claimed
from moco.ablate.table import markdown
from moco.build import resolve
from moco.data.augmentation import SMALL as SMALL_VIEWS
from moco.data.source import ArraySource
from moco.images import Data
from moco.run_folder import read_run, write_recipe
from moco.studies import STUDIES
from test_run import StopAfter
from tiny import save_arrays
from toy_study import BASE, SMALL, calm, data, quick, quiet, toy, toy_file  # noqa: F401


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_runs_from_end_to_end(name, data, tmp_path):  # noqa: F811
    study = STUDIES[name](BASE, SMALL[name])
    table = quiet(study, data=data, out=tmp_path / "study", seeds=(0,))
    assert [row["n"] for row in table["rows"]] == [1] * len(study.cells)
    for row in table["rows"]:
        assert 0 <= row["values"][study.metric]["mean"] <= 100
    assert {"untrained_trunk", "raw_pixels"} <= table["baselines"].keys()
    written = {path.name for path in (tmp_path / "study").iterdir()}
    assert {"figure.png", "figure.svg", "table.json", "table.md", "cost.json"} <= written
    assert np.asarray(Image.open(tmp_path / "study/figure.png")).std() > 5
    assert "<svg" in (tmp_path / "study/figure.svg").read_text()
    assert json.loads((tmp_path / "study/table.json").read_text()) == table
    if name == "architectures":
        sizes = [row["x"] for row in table["rows"]]
        assert sizes == [parameters(cell.recipe, 3) for cell in study.cells]
        assert sizes[1] > 3 * sizes[0]


@pytest.mark.parametrize(("cell", "step"), [(0, 5), (2, 3), (3, 6)])
def test_a_study_stopped_anywhere_ends_with_the_same_table(calm, data, tmp_path, monkeypatch, cell, step):  # noqa: F811
    begun = []

    def stopping(job, call):
        begun.append(job.name)
        watch = (StopAfter(step),) if len(begun) == cell + 1 else ()
        cells.run_cell(job, call, watch)

    with monkeypatch.context() as patch:
        patch.setattr(executing, "run_cell", stopping)
        with pytest.raises(KeyboardInterrupt):
            quiet(toy(), data=data, out=tmp_path / "study", seeds=(0, 1))
    assert len(begun) == cell + 1
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "study").rglob("result.json")}
    assert len(kept) == cell
    quiet(toy(), data=data, out=tmp_path / "study", seeds=(0, 1))
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
    for name in "table.json", "table.md", "figure.png", "figure.svg":
        assert (tmp_path / "study" / name).read_bytes() == (calm / name).read_bytes(), name


@pytest.mark.slow
def test_kill_9_of_a_study_of_processes_gives_the_same_table(calm, data, tmp_path):  # noqa: F811
    """Its cells end with it, and the next call goes on with them."""
    out = tmp_path / "study"
    words = [
        "ablate",
        toy_file(tmp_path),
        "--data",
        data,
        "--out",
        str(out),
        "--seeds",
        "0",
        "1",
        "--jobs",
        "1",
    ]
    words += ["--threads", "1", "--no-estimate"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "moco", *words], env=environment, stdout=log, stderr=log
        )
        deadline = time.monotonic() + 240
        while not list(out.glob("cells/*/journal.jsonl")):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    study = toy()
    plan = Plan(study, data, (0, 1), out)
    while not all(_free(job) for job in plan.jobs):
        assert time.monotonic() < deadline, "a cell outlived its study"
        time.sleep(0.05)
    assert not all(job.settled for job in plan.jobs)
    quiet(study, data=data, out=out, seeds=(0, 1))
    assert (out / "table.json").read_bytes() == (calm / "table.json").read_bytes()


def _free(job):
    with claimed(job) as held:
        return held is not None


def test_a_finished_study_is_not_run_again_and_more_seeds_are_added(calm, data, monkeypatch):  # noqa: F811
    before = (calm / "table.json").read_bytes()
    monkeypatch.setattr(executing, "run_cell", lambda *_: pytest.fail("ran again"))
    quiet(toy(), data=data, out=calm, seeds=(0, 1))
    assert (calm / "table.json").read_bytes() == before
    ran = []
    monkeypatch.setattr(executing, "run_cell", lambda job, _: ran.append(job.name))
    quiet(toy(0.1, 0.5, 0.2), data=data, out=calm, seeds=(0, 1, 2))
    assert ran == ["t-0.2-seed0", "t-0.2-seed1", "t-0.1-seed2", "t-0.5-seed2", "t-0.2-seed2"]
    quiet(toy(), data=data, out=calm, seeds=(0, 1))


def test_a_study_goes_on_with_its_own_images_only(data, tmp_path):  # noqa: F811
    spec = shutil.copy(data, tmp_path / "images.npz")
    run_study(
        toy(), data=str(spec), out=tmp_path / "study", seeds=(0,), machine=Machine(jobs=0, most=1),
        estimate=False, say=lambda _: None,
    )  # fmt: skip
    save_arrays(tmp_path, images=110)
    with pytest.raises(FileExistsError, match="was begun on other images than"):
        quiet(toy(), data=str(spec), out=tmp_path / "study", seeds=(0,))


def test_all_cells_have_the_precision_of_the_machine_that_began(data, tmp_path, monkeypatch):  # noqa: F811
    cells = tuple(replace(c, recipe=replace(c.recipe, precision="auto")) for c in toy().cells)
    study = replace(toy(), cells=cells)
    for said in "avx512_bf16", "":
        monkeypatch.setattr(processor, "cpu_info", lambda said=said: said)
        run_study(
            study, data=data, out=tmp_path / "study", seeds=(0,), machine=Machine(jobs=0, most=1),
            estimate=False, say=lambda _: None,
        )  # fmt: skip
    runs = [read_run(path)[0] for path in (tmp_path / "study/cells").iterdir()]
    assert [values.precision for values in runs] == ["bfloat16"] * 2


def test_a_cell_whose_folder_was_taken_away_is_run_anew(data, tmp_path):  # noqa: F811
    table = quiet(toy(), data=data, out=tmp_path / "study", seeds=(0,))
    shutil.rmtree(tmp_path / "study/cells/t-0.5-seed0")
    assert quiet(toy(), data=data, out=tmp_path / "study", seeds=(0,)) == table


def test_a_call_may_start_some_cells_or_run_for_some_time_only(data, tmp_path):  # noqa: F811
    few = Machine(jobs=0, most=1)
    for left in 1, 0:
        table = run_study(
            toy(), data=data, out=tmp_path / "s", seeds=(0,), machine=few, estimate=False, say=lambda _: None
        )
        assert table["open"] == left
    short = Machine(jobs=1, minutes=1e-6)
    study = toy(0.1, 0.5, 0.2)
    table = run_study(
        study, data=data, out=tmp_path / "s", seeds=(0,), machine=short, estimate=False, say=lambda _: None
    )
    assert (table["open"], [row["n"] for row in table["rows"]]) == (1, [1, 1, 0])


def test_a_cell_that_another_call_holds_is_left_to_it(data, tmp_path, monkeypatch):  # noqa: F811
    ran = []
    monkeypatch.setattr(executing, "run_cell", lambda job, _: ran.append(job.name))
    plan = Plan(toy(), data, (0,), tmp_path / "study")
    with claimed(plan.jobs[0]) as held:
        assert held is not None
        (plan.out / "study.json").write_text(json.dumps({"study": "toy", "data": data, "threads": 1}))
        quiet(toy(), data=data, out=plan.out, seeds=(0,))
    assert ran == ["t-0.5-seed0"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (FloatingPointError("the loss of step 3 is not finite"), "diverged"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (MemoryError("no"), "out of memory"),
    ],
)
def test_divergence_and_shortage_are_outcomes_and_are_kept(error, status, data, tmp_path, monkeypatch):  # noqa: F811
    def fails(recipe, **more):
        if recipe.loss.temperature == 0.5:
            raise error
        return original(recipe, **more)

    original = cells.pretrain
    monkeypatch.setattr(cells, "pretrain", fails)
    table = quiet(toy(), data=data, out=tmp_path / "study", seeds=(0,))
    assert [row["n"] for row in table["rows"]] == [1, 0]
    assert table["rows"][1]["ended"] == f"1 {status}"
    assert f"0 (1 {status})" in markdown(table)
    monkeypatch.setattr(cells, "pretrain", lambda *_, **__: pytest.fail("ran again"))
    quiet(toy(), data=data, out=tmp_path / "study", seeds=(0,))


def test_other_errors_leave_the_rest_to_finish_and_are_tried_again(data, tmp_path, monkeypatch):  # noqa: F811
    def fails(recipe, **more):
        if recipe.loss.temperature == 0.1:
            raise RuntimeError("a file cannot be decoded")
        return original(recipe, **more)

    original = cells.pretrain
    monkeypatch.setattr(cells, "pretrain", fails)
    with pytest.raises(RuntimeError, match=r"1 of 2 cells failed \(t-0.1-seed0\).* cannot be decoded"):
        quiet(toy(), data=data, out=tmp_path / "study", seeds=(0,))
    monkeypatch.setattr(cells, "pretrain", original)
    table = quiet(toy(), data=data, out=tmp_path / "study", seeds=(0,))
    assert [row["n"] for row in table["rows"]] == [1, 1]


def test_memory_is_limited_in_the_cell_s_own_process():
    code = (
        "from moco.ablate.cell import is_shortage, limit_memory\nimport torch\nlimit_memory(2.0, 'cpu')\n"
        "try: torch.ones(2**30)\nexcept RuntimeError as e: print(is_shortage(e))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize(("channels", "groups"), [(1, None), (3, torch.arange(100) // 2)])
def test_a_study_goes_on_whatever_its_images_are(channels, groups, tmp_path):
    """What the images fill in (statistics, masks of groups) does not make it another recipe."""
    views = replace(SMALL_VIEWS, size=16)
    study = toy(0.1)
    asked = replace(study.cells[0], recipe=replace(study.cells[0].recipe, views=views))
    plan = Plan(replace(study, cells=(asked,)), "x", (0,), tmp_path / "study")
    plan.begin(1)
    pixels = torch.arange(100 * channels * 256).remainder(251).byte().view(100, channels, 16, 16)
    job = plan.jobs[0]
    images = Data(ArraySource(pixels, groups=groups), None)
    begun = resolve(job.recipe, images, torch.device("cpu"))
    assert begun.views.mean != views.mean or begun.dictionary != job.recipe.dictionary
    job.folder.mkdir(parents=True)
    write_recipe(job.folder, begun, {})
    assert plan.begin(1) == 1
    other = replace(asked, recipe=replace(asked.recipe, views=replace(views, size=8)))
    with pytest.raises(FileExistsError, match="was begun with another recipe"):
        Plan(replace(study, cells=(other,)), "x", (0,), plan.out).begin(1)


@pytest.mark.parametrize(
    ("device", "environment", "index"),
    [
        ("cuda:2", {}, 2),
        ("cuda", {}, 0),
        ("auto", {}, 0),
        ("auto", {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "3"}, 3),
        ("cuda", {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}, 1),
    ],
)
def test_memory_is_limited_on_the_gpu_of_the_cell(device, environment, index, monkeypatch):
    for name in "WORLD_SIZE", "RANK", "LOCAL_RANK", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID":
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    limits = []
    gpus = [SimpleNamespace(total_memory=gib * 2**30) for gib in (8, 16, 32, 64)]
    for name, fake in {
        "is_available": lambda: True,
        "device_count": lambda: 4,
        "current_device": lambda: 0,
        "get_device_properties": lambda at: gpus[at if isinstance(at, int) else at.index or 0],
        "set_per_process_memory_fraction": lambda share, at=None: limits.append((share, at)),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    cells.limit_memory(4.0, device)
    assert limits == [(4 / (8, 16, 32, 64)[index], index)]
