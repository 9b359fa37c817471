"""The commands that measure a run: each protocol from end to end, and wrong calls."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from commands import call, json_of
from moco.cli import main
from moco.cli.finetune import Finetune, chosen
from moco.data.procedural import procedural
from moco.evaluate import linear, logistic
from moco.evaluate.finetune import IMAGENET, INATURALIST, FineTuning
from moco.export.backbone import backbone_metadata
from moco.starts import choose_start, open_setting
from moco.supervised import counterpart, finetune, supervised
from tiny import save_arrays

QUICK = FineTuning(lr=0.1, epochs=3, schedule="cosine", batch=25)


def test_the_papers_fine_tuning():
    assert (INATURALIST.lr, INATURALIST.epochs, INATURALIST.milestones) == (0.025, 100, (0.7, 0.9))
    assert [INATURALIST.rate(done) for done in (0, 0.69, 0.7, 0.9)] == pytest.approx(
        [0.025, 0.025, 0.0025, 0.00025]
    )
    assert IMAGENET.lr == 0.03
    assert FineTuning(lr=0.1, schedule="cosine", batch=512).rate(0.5) == pytest.approx(0.1)


@pytest.mark.parametrize("kind", ["paper", "grid", "logistic"])
def test_linear_classification(run, capsys, kind):
    found = json_of(capsys, "linear", run, "--kind", kind, "--epochs", 3, "--lr", 1)
    assert found["kind"] == kind
    assert 0 <= found["top1"] <= 100
    assert len(found.get("grid", [0] * 24)) >= 24
    call("linear", run, "--kind", kind, "--epochs", 1, "--weights", "untrained")
    assert "untrained network: linear classification" in capsys.readouterr().out


def test_few_labels(run, capsys):
    found = json_of(capsys, "few-labels", run, "--per-class", 1, 3, "--share", 0.5, "--repeats", 2)
    assert [row["amount"] for row in found["curve"]] == ["1 per class", "3 per class", "50 %"]
    (once,) = json_of(capsys, "few-labels", run, "--per-class", 1, "--repeats", 1)["curve"]
    assert (once["low"], once["high"]) == (None, None)
    call("few-labels", run, "--per-class", 1, "--share", 0.5, "--repeats", 2)
    assert "mean and 95 % interval over 2 splits" in capsys.readouterr().out


def test_few_labels_leaves_amounts_out_that_classes_are_too_small_for(run, capsys):
    amounts = [point["amount"] for point in json_of(capsys, "few-labels", run, "--repeats", 2)["curve"]]
    assert "1 per class" in amounts
    assert "50 per class" not in amounts


def test_diagnose(run, capsys):
    found = json_of(capsys, "diagnose", run, "--images", 20)
    assert found["trend"] == "too early to say"
    assert 0 <= found["retrieval"] <= 100
    call("diagnose", run, "--images", 20)
    assert "RankMe" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ("linear", "--kind", "grid"),
        ("linear", "--kind", "logistic"),
        ("few-labels", "--share", "0.5", "--repeats", "2"),
    ],
)
def test_whatever_is_chosen_among_labelled_images_is_chosen_by_whole_groups(
    run, tmp_path, monkeypatch, words
):
    arrays = dict(np.load(save_arrays(tmp_path)))
    np.savez(tmp_path / "grouped.npz", **arrays, groups=np.arange(len(arrays["images"])) // 5)
    seen = []

    def spy(of, name):
        whole = getattr(of, name)
        monkeypatch.setattr(of, name, lambda *a, **k: seen.append(a) or whole(*a, **k))

    spy(logistic, "_folds_of_groups")
    spy(linear, "_tenth")
    call(words[0], run, "--data", tmp_path / "grouped.npz", *words[1:])
    assert seen
    assert all(
        any(isinstance(x, torch.Tensor) and len(x.unique()) < x.numel() for x in call) for call in seen
    )


@pytest.mark.parametrize(("asked", "seen"), [(2000, 40), (33, 32), (15, 15)])
def test_diagnose_says_how_many_images_it_looked_at(run, capsys, monkeypatch, asked, seen):
    monkeypatch.setattr("moco.images._PAIRS", 20)
    assert json_of(capsys, "diagnose", run, "--images", asked)["images"] == seen


def test_diagnostics_stand_in_the_journal(run):
    rows = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    assert any({"retrieval", "alignment", "uniformity", "rankme"} <= row.keys() for row in rows)


def test_fine_tuning_changes_the_trunk_and_the_run_stays_as_it_was(run):
    setting = open_setting(run)
    start = choose_start(setting, None)
    before = {name: tensor.clone() for name, tensor in start.encoder.state_dict().items()}
    net = start.classifier(setting)
    rows = list(finetune(setting, start, QUICK, net=net))
    assert len(rows) == 3
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert not torch.equal(net.trunk.conv1.weight, start.encoder.trunk.conv1.weight)
    assert all(torch.equal(t, before[n]) for n, t in start.encoder.state_dict().items())


def test_supervised_goes_on_to_the_same_bits_and_loads_like_a_run(run, tmp_path):
    setting = open_setting(run)
    whole = supervised(setting, tmp_path / "whole", QUICK, say=lambda _: None)

    class Killed(Exception):
        pass

    def stop(sentence):
        if "epoch 2" in sentence:
            raise Killed

    with pytest.raises(Killed):
        supervised(setting, tmp_path / "part", QUICK, say=stop)
    assert supervised(setting, tmp_path / "part", QUICK, say=lambda _: None) == whole
    files = [tmp_path / name / "backbone.safetensors" for name in ("whole", "part")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert backbone_metadata(files[0])["arch"] == "resnet10"
    assert supervised(setting, tmp_path / "whole", QUICK) == whole  # finished: nothing is done again
    with pytest.raises(FileExistsError, match=r"holds another training \(lr is 0.1 there, 0.03 here\)"):
        supervised(setting, tmp_path / "whole", FineTuning(epochs=1, batch=25))


def test_the_counterpart_takes_the_runs_epochs_and_batch(run):
    protocol = counterpart(open_setting(run))
    assert (protocol.epochs, protocol.batch, protocol.schedule) == (1, 32, "cosine")
    assert counterpart(open_setting(run), epochs=7, batch=16).epochs == 7


def test_amounts_that_are_left_out_are_named(run, capsys):
    call("few-labels", run, "--per-class", 1, "--share", 0.6, "--repeats", 2)
    assert "60 % is left out: its" in capsys.readouterr().err
    call("few-labels", run, "--per-class", 1, "--repeats", 2)
    assert "left out" not in capsys.readouterr().err


def test_the_rate_from_random_weights_is_the_papers(run, capsys):
    said = "learning rate 0.1, the paper's from random weights"
    for protocol in "imagenet", "inaturalist":
        words = "finetune", run, "--epochs", 1, "--batch", 25, "--protocol", protocol
        for more, expected in ((), False), (("--weights", "untrained"), True):
            call(*words, *more)
            assert (said in capsys.readouterr().err) is expected
    call(*words, "--weights", "untrained", "--lr", 0.05)
    assert said not in capsys.readouterr().err
    untrained = Finetune(run, protocol="inaturalist", weights="untrained")
    assert [chosen(replace(untrained, lr=lr)).lr for lr in (None, 0.05)] == [0.1, 0.05]
    assert chosen(Finetune(run, protocol="inaturalist")).lr == 0.025


def folder_of(images, path):
    for number in range(len(images)):
        place = path / str(int(images.labels[number])) / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.read(number).permute(1, 2, 0).numpy()).save(place)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("linear {tmp}/none", "holds no run"),
        ("linear {run} --data {tmp}/bare", "has no labels"),
        ("linear {run} --data {tmp}/gaps.npz", "3 of the 100 images"),
        ("verdict {run} --data {tmp}/one.npz", "images of one class only"),
        ("linear {run} --data {tmp}/grey.npz", "images of 1 channel, the weights were trained on 3"),
        ("knn {run} --data {tmp}/grey.npz", "images of 1 channel, the weights were trained on 3"),
        ("diagnose {run} --data {tmp}/grey.npz", "images of 1 channel, the weights were trained on 3"),
        ("linear {run} --data {tmp}/new.npz", "has no training image"),
        ("few-labels {run} --per-class 90 --share 0.5", "90 labels per class were asked for"),
        ("few-labels {run} --share 2", "must be in (0, 1]"),
        ("few-labels {run} --repeats 0", "repeats must be at least 1, got 0"),
        ("diagnose {run} --images 0", "images must be at least 2, whose features are compared, got 0"),
        ("finetune {run} --batch 5000", "fewer than a batch of 5000"),
        ("finetune {run} --lr 0", "lr must be above 0"),
        ("linear {run} --weights {tmp}/none.safetensors", "there is no file"),
        ("linear {run} --weights torchvision/resnet18:{tmp}/none.pth", "there is no file"),
        ("verdict {run} --against {tmp}/bare/x.png", "x.png"),
        ("supervised {run} --out {tmp}/bare", "nothing was overwritten"),
        ("diagnose {run} --images 1", "images must be at least 2, whose features are compared, got 1"),
    ],
)
def test_wrong_calls_end_with_2_and_one_sentence(run, tmp_path, capsys, words, message):
    images = procedural(100, size=16)
    pixels = images.pixels.permute(0, 2, 3, 1).numpy()
    labels = images.labels.numpy()
    np.savez(tmp_path / "gaps.npz", images=pixels, labels=np.where(np.arange(100) < 3, -1, labels))
    np.savez(tmp_path / "one.npz", images=pixels, labels=0 * labels)
    np.savez(tmp_path / "grey.npz", images=pixels[..., 0], labels=labels)
    np.savez(tmp_path / "new.npz", images=pixels, labels=np.where(labels > 4, 4, labels),
             test_images=pixels[:10], test_labels=np.arange(10))  # fmt: skip
    (tmp_path / "bare").mkdir()
    Image.fromarray(pixels[0]).save(tmp_path / "bare" / "x.png")
    before = sorted(path.name for path in run.iterdir())
    with pytest.raises(SystemExit) as stopped:
        main(words.format(run=run, tmp=tmp_path).split())
    shown = capsys.readouterr()
    assert stopped.value.code == 2
    assert message in shown.err
    assert shown.out == ""
    assert "Traceback" not in shown.err
    assert sorted(path.name for path in run.iterdir()) == before


def test_a_folder_of_files_gives_what_the_same_pixels_in_an_array_give(run, tmp_path, capsys):
    folder_of(procedural(60, size=16), tmp_path / "train")
    folder_of(procedural(30, size=16, split="test"), tmp_path / "test")
    files = json_of(capsys, "linear", run, "--kind", "logistic", "--data", tmp_path)
    train, test = procedural(60, size=16), procedural(30, size=16, split="test")
    order = [
        sorted(range(len(s)), key=lambda i, s=s: (str(int(s.labels[i])), f"{i}.png")) for s in (train, test)
    ]
    arrays = {
        "images": train.pixels[order[0]].permute(0, 2, 3, 1).numpy(),
        "labels": train.labels[order[0]].numpy(),
        "test_images": test.pixels[order[1]].permute(0, 2, 3, 1).numpy(),
        "test_labels": test.labels[order[1]].numpy(),
    }
    np.savez(tmp_path / "same.npz", **arrays)
    assert json_of(capsys, "linear", run, "--kind", "logistic", "--data", tmp_path / "same.npz") == files
