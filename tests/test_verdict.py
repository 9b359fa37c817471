"""The verdict on a run: from end to end, its rows and its reference."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from commands import call, json_of
from moco import assess
from moco.cli.verdict import _print as print_verdict
from moco.evaluate.finetune import FineTuning
from moco.launch import pretrain
from moco.recipe import InBatch, Monitor, TiedKeys
from moco.recipes import get
from moco.starts import open_setting
from moco.verdict import Row, verdict
from tiny import save_arrays

QUICK = FineTuning(lr=0.1, epochs=3, schedule="cosine", batch=25)


def test_runs_of_other_mechanisms_are_called_what_they_are(tmp_path, capsys):
    values, data = get("demo"), save_arrays(tmp_path)
    values = replace(
        values, keys=TiedKeys(), dictionary=InBatch(), batch=20, epochs=1,
        encoder=replace(values.encoder, width=8, bn_group=10), monitor=Monitor(k=5),
    )  # fmt: skip
    pretrain(values, data=str(data), out=tmp_path / "run", device="cpu")
    for words in ("pretrain", "--resume"), ("knn",):
        call(*words, tmp_path / "run")
        assert "trained by end-to-end" in capsys.readouterr().out
    assert "trained by end-to-end" in (tmp_path / "run" / "report.html").read_text()
    call("verdict", tmp_path / "run", "--repeats", 2, "--no-finetune", "--no-supervised")
    shown = capsys.readouterr().out
    assert "end-to-end" in shown
    assert "momentum contrast" not in shown
    setting = open_setting(tmp_path / "run" / "backbone.safetensors", str(data))
    with pytest.raises(ValueError, match=r"backbone.safetensors is no run folder; a verdict is written into"):
        verdict(setting)


def test_a_verdict_from_end_to_end(run, capsys, monkeypatch):
    monkeypatch.setattr(assess, "_FEW_LABEL_STEPS", 3)
    call("verdict", run, "--repeats", 2)
    shown, told = capsys.readouterr()
    assert "fine-tuning on few labels: 1 of 8, about" in told
    result = json.loads((run / "verdict.json").read_text())
    assert shown.rstrip().endswith(result["sentence"])
    names = [row["name"] for row in result["rows"]]
    assert names == ["momentum contrast", "untrained network", "raw pixels", "supervised, all labels"]
    assert "few labels, fine-tuned end to end" in shown
    assert (run / "verdict.png").stat().st_size > 10_000
    assert (run / "supervised" / "backbone.safetensors").exists()
    again = json_of(capsys, "verdict", run, "--repeats", 2, "--no-finetune", "--against", run / "supervised")
    assert str(run / "supervised") in [row["name"] for row in again["rows"]]
    assert again["rows"][0]["few_labels"] == result["rows"][0]["few_labels"]


def test_differences_are_from_our_counterpart_whatever_other_weights_are_called(capsys):
    numbers = ("knn_trunk", "knn_output", "linear")
    names = {"momentum contrast": 50.0, "supervised-r50": 90.0, "supervised, all labels, 4 epochs": 60.0}
    rows = [{"name": n, "few_labels": [], "few_labels_fine_tuned": []} | dict.fromkeys(numbers, v)
            for n, v in names.items()]  # fmt: skip
    facts = {"images": 9, "test_images": 3, "classes": 2, "supervised_top1": None, "sentence": "It depends."}
    print_verdict(facts | {"rows": rows})
    assert "(-10.0)" in next(line for line in capsys.readouterr().out.splitlines() if "momentum" in line)
    print_verdict(facts | {"rows": rows[:2]})
    assert "(" not in capsys.readouterr().out


def test_too_few_images_are_refused_before_any_is_encoded(run, tmp_path, capsys, monkeypatch):
    images, labels = np.zeros((40, 16, 16, 3), np.uint8), np.arange(40) // 2
    np.savez(tmp_path / "pairs.npz", images=images, labels=labels)
    monkeypatch.setattr("moco.starts.extract", lambda *_, **__: pytest.fail("images were encoded"))
    for command in "verdict", "few-labels":
        call(command, run, "--data", tmp_path / "pairs.npz", expect=2)
        assert "are too few to compare amounts of labels" in capsys.readouterr().err


def test_of_very_many_classes_no_amount_is_fine_tuned_on(run, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("moco.verdict.TRAINED_LABELS", 30)
    monkeypatch.setattr("moco.verdict.measure", lambda _, start, **__: Row(start.name, 0, 0, 0, None, [], []))
    monkeypatch.setattr("moco.verdict._raw_row", lambda *_, **__: None)
    monkeypatch.setattr(
        "moco.verdict.few_label_curve", lambda *_, **__: pytest.fail("fine-tuned on 40 labels")
    )
    monkeypatch.setattr("moco.verdict.diagnose", stop)
    setting = open_setting(run)
    train = replace(setting.train, labels=torch.arange(len(setting.train.labels)) % 40)
    with pytest.raises(KeyboardInterrupt):
        verdict(replace(setting, train=train, classes=40), with_supervised=False)
