"""A study's table, its baselines, estimates and rows, and the images drawn for it."""

import json
import statistics
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moco.ablate import execute as executing
from moco.ablate.conduct import forecast, run_study
from moco.ablate.estimate import survey
from moco.ablate.execute import Machine
from moco.ablate.plan import Plan
from moco.ablate.row import write_row
from moco.ablate.subset import subset
from moco.ablate.table import difference, gather, markdown
from moco.images import Data, open_data
from moco.report.studies import plot_study
from moco.studies import Point, Published
from toy_study import HERE, call, calm, data, quick, toy  # noqa: F401


def test_the_table_is_means_spreads_and_paired_differences(calm, data):  # noqa: F811
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


def test_baselines_are_those_of_the_reference_s_network_one_value_for_each_seed(calm, data, monkeypatch):  # noqa: F811
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
    made = difference(values.tolist())
    assert (made["low"], made["high"]) == pytest.approx((low, high), abs=2e-3)


def test_a_measures_file_adds_a_column(calm, data):  # noqa: F811
    path = calm / "cells/t-0.1-seed0/measures.json"
    path.write_text('{"linear": 61.5, "probe": 1.0}')
    try:
        row = gather(Plan(toy(), data, (0, 1), calm))["rows"][0]
        assert row["values"]["linear"] == {"mean": 61.5, "n": 1}
        assert list(row["values"])[-1] == "probe"
    finally:
        path.unlink()


def test_published_numbers_stand_beside_ours_only_for_the_same_images_and_metric(tmp_path, calm, data):  # noqa: F811
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


def test_estimates_name_every_open_job(data, calm, tmp_path):  # noqa: F811
    images = open_data(data)
    assert isinstance(images, Data)
    plan = Plan(toy(), data, (0, 1), tmp_path / "new")
    seconds = survey(plan, images, torch.device("cpu"))
    assert seconds.keys() == {job.name for job in plan.jobs}
    assert all(value > 6 for value in seconds.values())
    assert survey(Plan(toy(), data, (0, 1), calm), images, torch.device("cpu")) == {}
    said = forecast(toy(), data=data, out=tmp_path / "new", seeds=(0,), machine=HERE)
    assert "2 cells x 1 seed on " in said
    assert "t-0.5: " in said
    assert not (tmp_path / "new").exists()


def test_a_study_s_threads_are_its_own(data, tmp_path, monkeypatch):  # noqa: F811
    seen = []
    monkeypatch.setattr(executing, "run_cell", lambda *_: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    machine = Machine(jobs=0, threads=before + 1)
    run_study(
        toy(), data=data, out=tmp_path / "s", seeds=(0,), machine=machine, estimate=False, say=lambda _: None
    )
    assert seen == [before + 1] * 2
    assert torch.get_num_threads() == before


def test_a_row_holds_no_folder_of_this_machine(calm, tmp_path):  # noqa: F811
    table = json.loads((calm / "table.json").read_text())
    write_row(tmp_path / "r.toml", table, calm, command="moco ablate toy.py", source="/some/where/cifar10")
    text = (tmp_path / "r.toml").read_text()
    row = tomllib.loads(text)
    assert str(tmp_path.parent) not in text
    assert (row["data"], row["runs"], row["study"]) == ("cifar10", 4, "toy")
    assert row["rows"][1]["difference"]["n"] == 2
    assert row["hardware"]


def test_a_row_counts_runs_not_places_in_the_table(calm, tmp_path):  # noqa: F811
    table = json.loads((calm / "table.json").read_text())
    table["rows"].append(table["rows"][0])  # one cell on two curves
    write_row(tmp_path / "r.toml", table, calm, command="moco ablate toy.py", source="cifar10")
    assert tomllib.loads((tmp_path / "r.toml").read_text())["runs"] == 4


def test_images_are_not_drawn_into_a_folder_of_something_else(data, tmp_path, capsys):  # noqa: F811
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    words = ["--data", data, "--out", tmp_path / "out", "--images", 50, "--test-images", 20]
    call("ablate", "momentum", *words, expect=2)
    assert "holds no study" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_subset_is_keyed_and_kept(data, tmp_path):  # noqa: F811
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
    few = open_data(subset(data, tmp_path / "c", images=4, test_images=None))
    assert set(few.test.labels.tolist()) - {-1} <= set(few.train.labels.tolist())
    whole = open_data(data).test.labels
    learnt = torch.isin(whole, few.train.labels)
    assert torch.equal(few.test.labels, torch.where(learnt, whole, -1))
    folder = tmp_path / "files"
    folder.mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "x.png")
    with pytest.raises(ValueError, match="draws from images held in memory"):
        subset(str(folder), tmp_path / "d", images=1, test_images=None)
