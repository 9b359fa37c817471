"""Trainings with labels that are kept in a folder: they are finished, resumed, or refused, never mixed up."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from commands import call, json_of
from moco.data.source import ArraySource
from moco.encoder import digest
from moco.evaluate.finetune import FineTuning
from moco.export.backbone import backbone_metadata
from moco.images import Portion
from moco.starts import choose_start, open_setting
from moco.supervised import _fingerprints, counterpart, finetune_in, supervised
from moco.weights import export_weights
from tiny import save_arrays

QUICK = FineTuning(lr=0.1, epochs=3, schedule="cosine", batch=25)


class Killed(Exception):
    pass


def kill_at(words):
    def say(sentence):
        if words in sentence:
            raise Killed

    return say


def fail(*_, **__):
    raise Killed


def quiet(sentence):
    pass


@pytest.fixture
def own(run, tmp_path):
    """A copy of the run, to write into."""
    return shutil.copytree(run, tmp_path / "own")


def few(folder, count):
    """The first labelled images of each kind."""
    arrays = np.load(save_arrays(folder))
    np.savez(folder / "few.npz", **{name: array[:count] for name, array in arrays.items()})
    return str(folder / "few.npz")


def note(folder, name="supervised.json"):
    return json.loads((folder / name).read_text())


def test_a_counterpart_of_other_images_is_refused_before_anything_is_measured(own, tmp_path, capsys):
    supervised(open_setting(own), own / "supervised", QUICK, say=quiet)
    before = note(own / "supervised")
    call("verdict", own, "--data", few(tmp_path, 60), "--repeats", 2, expect=2)
    said = capsys.readouterr().err
    assert "supervised holds another training (data is" in said
    assert "few.npz here)" in said
    assert "--no-supervised" in said
    assert "features" not in said
    assert note(own / "supervised") == before
    again = dict(before, plan=before["plan"] | {"recipe": before["plan"]["recipe"] | {"seed": 7}})
    (own / "supervised" / "supervised.json").write_text(json.dumps(again))
    call("verdict", own, "--repeats", 2, expect=2)
    assert "holds another training (seed is 7 there, 0 here)" in capsys.readouterr().err


def test_a_counterpart_of_images_that_changed_is_refused(own, tmp_path, capsys):
    spec = few(tmp_path, 60)
    supervised(open_setting(own, spec), own / "supervised", QUICK, say=quiet)
    arrays = dict(np.load(spec))
    np.savez(spec, **arrays | {"images": arrays["images"][::-1], "labels": arrays["labels"][::-1]})
    call("verdict", own, "--data", spec, "--repeats", 2, expect=2)
    assert "holds another training (its images have changed)" in capsys.readouterr().err


def test_a_counterpart_of_other_epochs_is_finished_and_named_so(own, capsys):
    with pytest.raises(Killed):
        supervised(open_setting(own), own / "supervised", QUICK, say=kill_at("epoch 2"))
    call("verdict", own, "--repeats", 2, "--no-finetune")
    assert "supervised, all labels, 3 epochs  " in capsys.readouterr().out
    rows = json.loads((own / "verdict.json").read_text())["rows"]
    assert rows[-1]["name"] == "supervised, all labels, 3 epochs"
    assert [row["epoch"] for row in note(own / "supervised")["rows"]] == [1, 2, 3]


def test_fine_tuning_in_a_folder_is_finished_once_and_refuses_another(own, tmp_path, capsys):
    words = "finetune", own, "--epochs", 2, "--batch", 25, "--out", tmp_path / "ft"
    first = json_of(capsys, *words)
    assert json_of(capsys, *words) == first
    assert note(tmp_path / "ft", "finetune.json")["rows"][-1]["top1"] == first["top1"]
    for flags, difference in (
        (("--weights", "untrained"), "it began from other weights"),
        (("--batch", 20), "batch is 25 there, 20 here"),
        (("--data", few(tmp_path, 60)), "data is "),
    ):
        call(*words, *flags, expect=2)
        assert f"ft holds another training ({difference}" in capsys.readouterr().err


def test_stopped_fine_tuning_goes_on_to_the_same_rows(own, tmp_path):
    setting = open_setting(own)
    start = choose_start(setting, None)
    whole = list(finetune_in(tmp_path / "whole", setting, start, QUICK))
    for _ in zip(range(2), finetune_in(tmp_path / "part", setting, start, QUICK), strict=False):
        pass
    list(finetune_in(tmp_path / "part", setting, start, QUICK))
    assert note(tmp_path / "part", "finetune.json") == note(tmp_path / "whole", "finetune.json")
    assert note(tmp_path / "whole", "finetune.json")["rows"] == whole


def test_backbones_say_what_made_them(own, tmp_path):
    out = own / "supervised"
    supervised(open_setting(own), out, FineTuning(epochs=1, batch=25), say=quiet)
    assert backbone_metadata(own / "backbone.safetensors")["mechanism"] == "MoCo"
    assert backbone_metadata(out / "backbone.safetensors")["mechanism"] == "supervised"
    for path, mechanism in (own, "MoCo"), (out / "backbone.safetensors", "supervised"):
        export_weights(path, ["safetensors"], out=tmp_path / mechanism)
        file = tmp_path / mechanism / "safetensors" / "backbone.safetensors"
        assert backbone_metadata(file)["mechanism"] == mechanism


def test_a_counterpart_knows_of_its_images_what_the_run_s_backbone_does(own):
    setting = open_setting(own)
    supervised(setting, own / "supervised", FineTuning(epochs=1, batch=25), say=quiet)
    facts = [backbone_metadata(path / "backbone.safetensors") for path in (own, own / "supervised")]
    for name in "pixels", "image_size", "range", "trained_on":
        assert facts[0][name] == facts[1][name]
    assert (facts[0]["pixels"], facts[0]["image_size"]) == ("uint8", [16, 16])


def test_a_kill_while_the_first_note_is_written_leaves_a_folder_to_begin_in(own, tmp_path):
    (tmp_path / "ft").mkdir()
    (tmp_path / "ft" / "finetune.json.tmp").touch()
    setting = open_setting(own)
    assert list(finetune_in(tmp_path / "ft", setting, choose_start(setting, None), QUICK))


def test_the_counterpart_s_batch_is_no_larger_than_the_labels(own, tmp_path, capsys):
    setting = open_setting(own, few(tmp_path, 20))
    protocol = counterpart(setting)
    assert (protocol.epochs, protocol.batch) == (1, 20)
    assert len(supervised(setting, tmp_path / "out", protocol, say=quiet)) == 1
    call("supervised", own, "--batch", 5000, expect=2)
    assert "fewer than a batch of 5000; use a smaller --batch" in capsys.readouterr().err
    assert not (own / "supervised").exists()
    call("supervised", own, "--batch", 20, "--epochs", 1)


def test_a_training_that_had_not_begun_is_no_other(own, monkeypatch):
    setting = open_setting(own)
    monkeypatch.setattr("moco.supervised.train_classifier", fail)
    with pytest.raises(Killed):
        supervised(setting, own / "supervised", QUICK, say=quiet)
    monkeypatch.undo()
    assert note(own / "supervised")["rows"] == []
    assert len(supervised(setting, own / "supervised", FineTuning(epochs=1, batch=20), say=quiet)) == 1


@pytest.mark.parametrize("last", [True, False])
def test_rows_without_a_backbone_are_not_the_end(own, tmp_path, last):
    """Killed after the last row: before its checkpoint, or after it and before the backbone."""
    setting = open_setting(own)
    whole = supervised(setting, tmp_path / "whole", QUICK, say=quiet)
    part = tmp_path / "part"
    if last:
        shutil.copytree(tmp_path / "whole", part)
        (part / "backbone.safetensors").unlink()
    else:
        with pytest.raises(Killed):
            supervised(setting, part, QUICK, say=kill_at("epoch 3"))
    assert len(note(part)["rows"]) == 3
    assert supervised(setting, part, QUICK, say=quiet) == whole
    files = [folder / "backbone.safetensors" for folder in (part, tmp_path / "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_second_kill_loses_no_row(own, monkeypatch):
    setting, out = open_setting(own), own / "supervised"
    with pytest.raises(Killed):
        supervised(setting, out, QUICK, say=kill_at("epoch 2"))
    monkeypatch.setattr("moco.training.checkpoint.Checkpoints.load", fail)
    with pytest.raises(Killed):
        supervised(setting, out, QUICK, say=quiet)
    assert [row["epoch"] for row in note(out)["rows"]] == [1, 2]


def test_weights_that_differ_are_told_apart(own):
    setting = open_setting(own)
    names = {digest(choose_start(setting, weights).encoder.trunk) for weights in (None, "untrained")}
    assert len(names) == 2
    again = choose_start(setting, None)
    with torch.no_grad():
        next(again.encoder.trunk.buffers()).add_(1)  # measured, so rounding of it is no other start
    assert digest(again.encoder.trunk) in names


def test_trainings_that_are_kept_know_the_labels_they_were_made_with():
    source = ArraySource(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))

    def setting(labels):
        portion = Portion(source, torch.arange(4), torch.tensor(labels))
        return SimpleNamespace(train=portion, test=portion)

    assert _fingerprints(setting([0, 1, 0, 1])) == _fingerprints(setting([0, 1, 0, 1]))
    assert _fingerprints(setting([0, 1, 0, 1])) != _fingerprints(setting([0, 1, 1, 1]))
