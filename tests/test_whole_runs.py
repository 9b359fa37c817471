"""Whole runs and their wall time, and the form in which a GPU's would end first."""

import importlib
import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture
def benchmark(monkeypatch):
    """A module of the benchmarks by its name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module


def test_a_run_that_is_cut_off_is_asked_to_leave_and_its_calls_add_up(benchmark, tmp_path, monkeypatch):
    whole_runs = benchmark("whole_runs")
    program = tmp_path / "python"
    program.write_text(
        '#!/bin/sh\ntest "$1 $2 $3" = "-m moco pretrain" || exit 9\n'
        'test -d "${TRITON_CACHE_DIR%/*}" || exit 8\n'
        'trap "exit 75" TERM\nn=0\nwhile test "$4" = slow -a $n -lt 400; do sleep 0.05; n=$((n+1)); done\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(whole_runs.sys, "executable", str(program))
    began = time.monotonic()
    assert whole_runs.pretrain(["slow"], tmp_path / "cpu-0", 0.5) == 75
    assert whole_runs.pretrain(["quick"], tmp_path / "cpu-0", float("inf")) == 0
    first, second = whole_runs.calls_of(tmp_path / "cpu-0")
    assert 0.5 <= first <= time.monotonic() - began + 0.1
    assert second < first


def test_a_row_holds_accuracy_and_wall_time(benchmark, run, tmp_path):
    whole_runs = benchmark("whole_runs")
    shutil.copytree(run, tmp_path / "demo-0")
    (tmp_path / "demo-0.seconds.json").write_text("[40.0, 12.5]")
    row = whole_runs.row([tmp_path / "demo-0"], "--kernels torch")
    assert (row["wall_seconds"], row["wall_seconds_each"], row["calls_each"]) == (52.5, [52.5], [2])
    assert row["command"].startswith("moco pretrain demo --data ")
    assert row["command"].endswith(" --kernels torch")
    assert row["knn"]["trained_output"]["mean"] > 0


def test_compiling_pays_only_where_a_run_is_long_enough(benchmark, tmp_path):
    soonest, steps = benchmark("gpu_campaign").soonest, tmp_path / "gpu_step.json"
    assert soonest(steps, "cifar") == ""
    forms = {
        "machine": {},
        "cifar: torch, compile off": {"first_steps_s": 2, "images_per_second": 40_000},
        "cifar: triton, compile off": {"first_steps_s": 5, "images_per_second": 50_000},
        "cifar: triton, compile default": {"first_steps_s": 45, "images_per_second": 70_000},
        "cifar: triton, compile reduce-overhead": {"failed": "RuntimeError"},
        "resnet50: torch, compile off": {"first_steps_s": 0, "images_per_second": 10**9},
    }
    steps.write_text(json.dumps(forms))
    assert soonest(steps, "cifar") == "--kernels triton --compile default"  # 10 million images
    assert soonest(steps, "cifar-fast") == "--kernels triton --compile off"  # 4 million


def test_the_gpu_campaign_times_whole_runs_alone(benchmark, tmp_path, monkeypatch):
    campaign, called = benchmark("gpu_campaign"), []
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/gpu_step.json").write_text(
        json.dumps({"cifar: triton, compile off": {"first_steps_s": 1, "images_per_second": 50_000}})
    )
    monkeypatch.setattr(
        campaign.subprocess, "run", lambda words, **_: called.append(words) or SimpleNamespace(returncode=75)
    )
    call = SimpleNamespace(out=tmp_path, toy=False, data="cifar10")
    campaign.whole(call, time.monotonic() + 60)
    assert [words[2] for words in called] == ["cifar", "cifar-fast"]
    assert all("--flags=--kernels triton --compile off --monitor.every 10" in words for words in called)
    assert Path(called[0][1]).exists()
    campaign.whole(call, time.monotonic())
    assert len(called) == 2
