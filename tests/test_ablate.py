"""Studies run: every study end to end, killed anywhere, failed cells, tables, figures, the command."""

import importlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from PIL import Image

from moco.ablate import cell as cells
from moco.ablate import execute as executing
from moco.ablate.conduct import forecast, open_study, run_study
from moco.ablate.estimate import parameters, survey
from moco.ablate.execute import Machine
from moco.ablate.plan import Plan, claimed
from moco.ablate.row import write_row
from moco.ablate.subset import subset
from moco.ablate.table import gather, interval, markdown
from moco.cli import main
from moco.cli.ablate import Ablate
from moco.cli.show import FLAGS
from moco.images import Data, open_data
from moco.recipe import Cosine, Encoder, InfoNCE, MomentumQueue, Monitor
from moco.report.studies import plot_study
from moco.studies import BASES, STUDIES, Axis, Cell, Point, Published, Study
from test_run import StopAfter, save_arrays
from tiny import tiny_recipe

BASE = tiny_recipe(
    encoder=Encoder(arch="resnet10", width=8, stem="small2", dim=16, bn_group=4),
    epochs=1,
    schedule=Cosine(),
    dictionary=MomentumQueue(size=40),
    monitor=Monitor(bank=40, queries=20, k=10),
)
HERE = Machine(jobs=0)
SMALL = {
    "mechanisms": (16,),
    "momentum": (0, 0.9),
    "shuffle-bn": (4,),
    "temperature": (0.1,),
    "v2": (2,),
    "architectures": (1, 2),
    "batch": (16, 32),
    "symmetric": (2,),
}


def toy(*values):
    """Two temperatures, or those given."""
    made = tuple(Cell(f"t-{t:g}", replace(BASE, loss=InfoNCE(t)), t) for t in values or (0.1, 0.5))
    return Study("toy", "Which temperature?", made, Axis("T", "linear"), reference=made[0].name)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return save_arrays(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Runs without their own pictures, which other tests cover."""
    for name in "finish.plot_curves", "launch.plot_views":
        monkeypatch.setattr(f"moco.{name}", lambda *_, **__: None)


@pytest.fixture(scope="module")
def calm(data, tmp_path_factory):
    """A study that nothing disturbed."""
    out = tmp_path_factory.mktemp("calm") / "study"
    with pytest.MonkeyPatch.context() as patch:
        for name in "finish.plot_curves", "launch.plot_views":
            patch.setattr(f"moco.{name}", lambda *_, **__: None)
        run_study(toy(), data=data, out=out, seeds=(0, 1), machine=HERE, say=lambda _: None, estimate=False)
    return out


def quiet(study, *, estimate=False, **more):
    return run_study(study, machine=HERE, say=lambda _: None, estimate=estimate, **more)


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_runs_from_end_to_end(name, data, tmp_path):
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
def test_a_study_stopped_anywhere_ends_with_the_same_table(calm, data, tmp_path, monkeypatch, cell, step):
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
def test_kill_9_of_a_study_of_processes_gives_the_same_table(calm, data, tmp_path):
    """Its cells end with it, and the next call goes on with them."""
    file = tmp_path / "toy.py"
    file.write_text(
        "import sys\n"
        f"sys.path[:0] = [{str(Path(__file__).parent)!r}]\n"
        "from test_ablate import toy\n\n\ndef study(base):\n    return toy()\n"
    )
    out = tmp_path / "study"
    words = ["ablate", str(file), "--data", data, "--out", str(out), "--seeds", "0", "1", "--jobs", "1"]
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


def test_a_finished_study_is_not_run_again_and_more_seeds_are_added(calm, data, monkeypatch):
    before = (calm / "table.json").read_bytes()
    monkeypatch.setattr(executing, "run_cell", lambda *_: pytest.fail("ran again"))
    quiet(toy(), data=data, out=calm, seeds=(0, 1))
    assert (calm / "table.json").read_bytes() == before
    ran = []
    monkeypatch.setattr(executing, "run_cell", lambda job, _: ran.append(job.name))
    quiet(toy(0.1, 0.5, 0.2), data=data, out=calm, seeds=(0, 1, 2))
    assert ran == ["t-0.2-seed0", "t-0.2-seed1", "t-0.1-seed2", "t-0.5-seed2", "t-0.2-seed2"]
    quiet(toy(), data=data, out=calm, seeds=(0, 1))


def test_a_call_may_start_some_cells_or_run_for_some_time_only(data, tmp_path):
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


def test_a_cell_that_another_call_holds_is_left_to_it(data, tmp_path, monkeypatch):
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
def test_divergence_and_shortage_are_outcomes_and_are_kept(error, status, data, tmp_path, monkeypatch):
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


def test_other_errors_leave_the_rest_to_finish_and_are_tried_again(data, tmp_path, monkeypatch):
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


def test_the_table_is_means_spreads_and_paired_differences(calm, data):
    table = gather(Plan(toy(), data, (0, 1), calm))
    results = [
        [json.loads((calm / f"cells/t-{t}-seed{s}/result.json").read_text())["knn"] for s in (0, 1)]
        for t in (0.1, 0.5)
    ]
    a, b = ([of["trained_trunk"] for of in runs] for runs in results)
    low, high = table["rows"]
    assert low["values"]["knn_trunk"] == {
        "mean": round(statistics.mean(a), 3), "n": 2, "std": round(statistics.stdev(a), 3)
    }  # fmt: skip
    assert "difference" not in low
    assert high["difference"]["mean"] == pytest.approx(statistics.mean(b) - statistics.mean(a), abs=1e-3)
    text = markdown(table)
    assert text.count("\n| t-0.") == 2
    assert "against t-0.1" in text
    assert "raw pixels" in text


def test_baselines_are_those_of_the_reference_s_network_one_value_for_each_seed(calm, data, monkeypatch):
    def told(job):
        value = 30.1 if job.recipe.seed < 2 else 33.0
        other = value + 9 * (job.cell != "t-0.1")  # another network
        return {"knn_trunk": 40.0, "untrained_trunk": other, "raw_pixels": 29.7}

    monkeypatch.setattr("moco.ablate.table.measures", told)
    monkeypatch.setattr("moco.ablate.plan.Job.outcome", lambda _: {"status": "finished"})
    found = gather(Plan(toy(), data, (0, 1, 2), calm))["baselines"]
    assert found["untrained_trunk"] == {"mean": 31.067, "n": 3, "std": 1.674}
    assert found["raw_pixels"] == {"mean": 29.7, "n": 1}


@pytest.mark.parametrize("count", [2, 3, 10, 30, 40])
def test_intervals_are_student_s(count):
    from scipy import stats

    values = np.random.default_rng(count).normal(1.0, 2.0, count)
    low, high = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    made = interval(values.tolist())
    assert (made["low"], made["high"]) == pytest.approx((low, high), abs=2e-3)


def test_a_measures_file_adds_a_column(calm, data):
    path = calm / "cells/t-0.1-seed0/measures.json"
    path.write_text('{"linear": 61.5, "probe": 1.0}')
    try:
        row = gather(Plan(toy(), data, (0, 1), calm))["rows"][0]
        assert row["values"]["linear"] == {"mean": 61.5, "n": 1}
        assert list(row["values"])[-1] == "probe"
    finally:
        path.unlink()


def test_published_numbers_stand_beside_ours_only_for_the_same_images_and_metric(tmp_path, calm, data):
    def figure(**changes):
        point = Published("a table", "tiny", "knn_trunk", (Point(0.1, 50.0),), images=100, classes=10)
        study = replace(toy(), published=(replace(point, **changes),))
        table = gather(Plan(study, data, (0, 1), calm))
        plot_study(
            tmp_path / "f.png", study, table, [], {}, images=100, classes=10, data="tiny"
        )  # fmt: skip
        with Image.open(tmp_path / "f.png") as image:
            return image.width

    one = figure()
    assert figure(images=101) == figure(classes=9) == figure(metric="linear top-1") == 2 * one


def test_estimates_name_every_open_job(data, calm, tmp_path):
    images = open_data(data)
    assert isinstance(images, Data)
    plan = Plan(toy(), data, (0, 1), tmp_path / "new")
    seconds = survey(plan, images, torch.device("cpu"))
    assert seconds.keys() == {job.name for job in plan.jobs}
    assert all(value > 6 for value in seconds.values())
    assert survey(Plan(toy(), data, (0, 1), calm), images, torch.device("cpu")) == {}
    said = forecast(toy(), data=data, out=tmp_path / "new", seeds=(0,), machine=HERE)
    assert "2 cells x 1 seeds" in said
    assert "t-0.5: " in said
    assert not (tmp_path / "new").exists()


def test_a_study_s_threads_are_its_own(data, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(executing, "run_cell", lambda *_: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    machine = Machine(jobs=0, threads=before + 1)
    run_study(
        toy(), data=data, out=tmp_path / "s", seeds=(0,), machine=machine, estimate=False, say=lambda _: None
    )
    assert seen == [before + 1] * 2
    assert torch.get_num_threads() == before


def test_a_row_holds_no_folder_of_this_machine(calm, tmp_path):
    table = json.loads((calm / "table.json").read_text())
    write_row(tmp_path / "r.toml", table, calm, command="moco ablate toy.py", source="/some/where/cifar10")
    text = (tmp_path / "r.toml").read_text()
    row = tomllib.loads(text)
    assert str(tmp_path.parent) not in text
    assert (row["data"], row["runs"], row["study"]) == ("cifar10", 4, "toy")
    assert row["rows"][1]["difference"]["n"] == 2
    assert row["hardware"]


def test_a_row_counts_runs_not_places_in_the_table(calm, tmp_path):
    table = json.loads((calm / "table.json").read_text())
    table["rows"].append(table["rows"][0])  # one cell on two curves
    write_row(tmp_path / "r.toml", table, calm, command="moco ablate toy.py", source="cifar10")
    assert tomllib.loads((tmp_path / "r.toml").read_text())["runs"] == 4


def test_images_are_not_drawn_into_a_folder_of_something_else(data, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    words = ["--data", data, "--out", tmp_path / "out", "--images", 50, "--test-images", 20]
    call("ablate", "momentum", *words, expect=2)
    assert "holds no study" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_subset_is_keyed_and_kept(data, tmp_path):
    kept = subset(data, tmp_path / "a", images=30, test_images=10)
    again = subset(data, tmp_path / "b", images=30, test_images=10)
    assert Path(kept).read_bytes() == Path(again).read_bytes()
    small = open_data(kept)
    assert small.test is not None
    with np.load(data) as arrays:
        np.savez(tmp_path / "grouped.npz", **arrays, groups=np.arange(len(arrays["images"])) // 5)
    grouped = open_data(subset(str(tmp_path / "grouped.npz"), tmp_path / "g", images=30, test_images=10))
    assert grouped.train.groups is not None
    assert len(grouped.train.groups.unique()) > 1
    assert (len(small.train), len(small.test)) == (30, 10)
    whole = open_data(data).train
    assert {small.train.read(i).numpy().tobytes() for i in range(30)} <= {
        whole.read(i).numpy().tobytes() for i in range(100)
    }
    assert subset(data, tmp_path / "a", images=30, test_images=10) == kept
    with pytest.raises(
        ValueError, match=r"holds other images than are drawn from .* now; choose another --out"
    ):
        subset(data, tmp_path / "a", images=20, test_images=10)
    with np.load(data) as arrays:
        others = {name: array[::-1] if "images" in name else array for name, array in arrays.items()}
    np.savez(tmp_path / "others.npz", **others)
    with pytest.raises(ValueError, match="holds other images than"):
        subset(str(tmp_path / "others.npz"), tmp_path / "a", images=30, test_images=10)
    with pytest.raises(ValueError, match="train images must be between 1 and the 100"):
        subset(data, tmp_path / "c", images=101, test_images=None)
    folder = tmp_path / "files"
    folder.mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "x.png")
    with pytest.raises(ValueError, match="draws from images held in memory"):
        subset(str(folder), tmp_path / "d", images=1, test_images=None)


def test_wrong_plans_are_refused(calm, data, tmp_path):
    with pytest.raises(ValueError, match="each once, got"):
        Plan(toy(), data, (0, 0), tmp_path / "x")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").touch()
    with pytest.raises(FileExistsError, match="holds no study"):
        quiet(toy(), data=data, out=tmp_path / "letters")
    with pytest.raises(FileExistsError, match="holds the study toy"):
        quiet(replace(toy(), name="other"), data=data, out=calm)
    with pytest.raises(FileExistsError, match="was begun on"):
        quiet(toy(), data="procedural", out=calm)
    other = replace(toy(), cells=tuple(replace(c, recipe=replace(c.recipe, epochs=2)) for c in toy().cells))
    with pytest.raises(FileExistsError, match="was begun with another recipe"):
        quiet(other, data=data, out=calm, seeds=(0, 1))
    big = Study("s", "?", (Cell("big", replace(BASE, dictionary=MomentumQueue(200)), 1.0),), Axis("x"))
    with pytest.raises(ValueError, match=r"cell big: dictionary.size must be below the 100 images"):
        quiet(big, data=data, out=tmp_path / "s")
    assert not (tmp_path / "s").exists()
    for wrong, message in (
        ({"jobs": -1}, "jobs must be 0"), ({"threads": 0}, "threads and workers"),
        ({"memory": 0.0}, "memory must be above 0"), ({"memory": 1.0, "jobs": 0}, "set jobs to 1"),
        ({"most": 0}, "most must be above 0"), ({"minutes": 1, "jobs": 0}, "stopped in time"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            Machine(**wrong)


def test_studies_by_name_and_from_files(tmp_path):
    assert open_study("momentum", BASE, (0, 0.5)).recipes().keys() == {"m-0", "m-0.5"}
    with pytest.raises(ValueError, match="there is no study 'v9'"):
        open_study("v9", BASE)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        open_study(str(tmp_path / "none.py"), BASE)
    for text, message in (
        ("", "has no function study"),
        ("def study(base): return 3", "must return a moco.studies.Study, got int"),
    ):
        (tmp_path / "mine.py").write_text(text)
        with pytest.raises(ValueError, match=message):
            open_study(str(tmp_path / "mine.py"), BASE)
    with pytest.raises(ValueError, match="takes no values"):
        open_study(str(tmp_path / "mine.py"), BASE, (1,))


def call(*words, expect=0):
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert stopped.value.code == expect


def test_the_command(data, tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("from test_ablate import toy\n\n\ndef study(base):\n    return toy(0.1)\n")
    call("ablate")
    shown = capsys.readouterr().out
    assert all(name in shown for name in STUDIES)
    words = ["ablate", file, "--data", data, "--out", tmp_path / "out", "--seeds", 0, "--jobs", 0]
    call(*words, "--dry-run", "--images", 50, "--test-images", 20)
    shown = capsys.readouterr()
    assert "1 of 1 runs to do, about " in shown.out
    assert not (tmp_path / "out").exists()
    call(*words, "--images", 50, "--test-images", 20, "--json", "--row", tmp_path / "row.toml")
    shown = capsys.readouterr()
    assert json.loads(shown.out)["rows"][0]["n"] == 1
    assert "1/1  t-0.1, seed 0:" in shown.err
    row = tomllib.loads((tmp_path / "row.toml").read_text())
    assert row["command"].startswith("moco ablate mine.py --data images.npz --seeds 0 --images 50")
    call(*words, "--images", 50, "--test-images", 20)
    shown = capsys.readouterr()
    assert "| t-0.1 |" in shown.out
    assert "0 of 1 runs to do" in shown.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("v9 {both}", "there is no study 'v9'"),
        ("momentum {both} --base nothing", "there is no base 'nothing'"),
        ("momentum {both} --values 1.5", "keys.momentum must be in [0, 1), got 1.5"),
        ("momentum {both} --jobs -1", "jobs must be 0"),
        ("momentum --data {tmp}/none --out {tmp}/out", "there is no {tmp}/none"),
        ("momentum {both} --device tpu", "there is no device 'tpu' here"),
        ("momentum {both} --seeds 1 1", "each once"),
        ("mechanisms {both} --values 64", "cell queue-64:"),
    ],
)
def test_wrong_calls_end_with_2(data, tmp_path, capsys, words, message):
    places = {"tmp": tmp_path, "both": f"--data {data} --out {tmp_path / 'out'}"}
    call("ablate", *words.format(**places).split(), expect=2)
    shown = capsys.readouterr()
    assert message.format(**places) in shown.err
    assert not shown.out
    assert not (tmp_path / "out").exists()


def test_the_gpu_campaign_asks_for_studies_there_are(tmp_path, capsys, monkeypatch):
    benchmarks = Path(__file__).parents[1] / "benchmarks"
    monkeypatch.syspath_prepend(str(benchmarks))
    campaign = importlib.import_module("gpu_campaign")
    names = [entry.name for entry in campaign.ENTRIES]
    assert len(set(names)) == len(names)
    for entry in campaign.ENTRIES:
        for words in entry.words, (*entry.words, *entry.toy):
            call = tyro.cli(Ablate, args=[*words, "--data", "x", "--out", "x"], config=FLAGS)
            assert open_study(call.study, BASES[call.base](), call.values).cells
    begun = tmp_path / "out" / "study" / "cells" / "a-seed0"
    for name in "checkpoints/step-1.pt", "journal.jsonl":
        (begun / name).parent.mkdir(parents=True, exist_ok=True)
        (begun / name).touch()
    campaign.keep(tmp_path / "out", tmp_path / "open")
    (begun / "result.json").touch()
    campaign.keep(tmp_path / "out", tmp_path / "done")
    found = {path.name for path in (tmp_path / "open").rglob("*") if path.is_file()}
    assert found == {"step-1.pt", "journal.jsonl"}
    found = {path.name for path in (tmp_path / "done").rglob("*") if path.is_file()}
    assert found == {"result.json", "journal.jsonl"}
    monkeypatch.setattr(sys, "argv", ["gpu_campaign.py", "--list"])
    campaign.main()
    assert all(name in capsys.readouterr().out for name in names[:1])
