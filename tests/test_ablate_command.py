"""Studies by name and from files, and what the command refuses."""

import importlib
import json
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tyro
from PIL import Image

from moco.ablate.conduct import forecast, open_study
from moco.ablate.execute import Machine
from moco.ablate.plan import Plan
from moco.cli.ablate import Ablate
from moco.cli.show import FLAGS
from moco.data.reading import Reading
from moco.recipe import MomentumQueue
from moco.studies import BASES, STUDIES, Axis, Cell, Study
from toy_study import BASE, HERE, call, calm, data, quick, quiet, toy, toy_file  # noqa: F401


def test_wrong_plans_are_refused(calm, data, tmp_path):  # noqa: F811
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


def test_a_study_is_prepared_on_images_read_as_its_cells_read_them(tmp_path):
    for i in range(50):
        Image.new("RGB", (16, 16), (5 * i, 0, 0)).save(tmp_path / f"{i}.png")
    views = replace(BASE.views, mean=(0.1,), std=(0.2,), saturation=0.0, hue=0.0, grayscale_probability=0.0)
    grey = replace(BASE, reading=Reading(channels=1), views=views)
    study = Study("grey", "?", (Cell("grey", grey, 1.0),), Axis("x", "linear"))
    said = forecast(study, data=str(tmp_path), out=tmp_path / "study", seeds=(0,), machine=HERE)
    assert "1 of 1 run to do" in said


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


def test_the_command(data, tmp_path, capsys):  # noqa: F811
    file = tmp_path / "mine.py"
    file.write_text("from toy_study import toy\n\n\ndef study(base):\n    return toy(0.1)\n")
    call("ablate")
    shown = capsys.readouterr().out
    assert all(name in shown for name in STUDIES)
    words = ["ablate", file, "--data", data, "--out", tmp_path / "out", "--seeds", 0, "--jobs", 0]
    call(*words, "--dry-run", "--images", 50, "--test-images", 20)
    shown = capsys.readouterr()
    assert "1 of 1 run to do, about " in shown.out
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
    assert "0 of 1 run to do" in shown.err
    call(*words, "--seeds", 0, 1, 2, "--images", 50, "--test-images", 20, "--most", 1, expect=75)
    assert "1 run left; the same command goes on" in capsys.readouterr().err


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
def test_wrong_calls_end_with_2(data, tmp_path, capsys, words, message):  # noqa: F811
    places = {"tmp": tmp_path, "both": f"--data {data} --out {tmp_path / 'out'}"}
    call("ablate", *words.format(**places).split(), expect=2)
    shown = capsys.readouterr()
    assert message.format(**places) in shown.err
    assert not shown.out
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_gpu_campaign_counts_what_a_slice_left(data, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    campaign = importlib.import_module("gpu_campaign")
    entry = campaign.Entry("toy", (str(toy_file(tmp_path)), "--seeds", "0"), "nothing")
    call = SimpleNamespace(out=tmp_path / "out", toy=False, data=data, jobs=1)
    assert campaign.run(entry, call, 0.001) == 2
    assert (tmp_path / "out/rows/toy.toml").exists()


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


def test_the_gpu_campaign_begins_with_tests_and_speeds_and_does_them_once(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    campaign = importlib.import_module("gpu_campaign")
    codes, called = [1, 0, 75, 0], []

    def run(words, **_):
        called.append(words)
        return SimpleNamespace(returncode=codes.pop(0))

    campaign.first(tmp_path, time.monotonic() + 600)
    assert not called  # without a GPU
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(campaign.subprocess, "run", run)
    for _ in range(3):  # the third part had to stop in time and goes on; then nothing is left
        campaign.first(tmp_path, time.monotonic() + 600)
    assert [Path(words[-1]).name for words in called] == [
        "gpu-tests.xml", "kernels.json", "gpu_step.json", "gpu_step.json"
    ]  # fmt: skip
    assert all(Path(word).exists() for words in called for word in words if word.endswith(".py"))
