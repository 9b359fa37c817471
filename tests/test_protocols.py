"""The commands that measure a run: each protocol from end to end, and wrong calls."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from moco import assess
from moco.assess import raw_pixels
from moco.cli import main
from moco.cli.finetune import Finetune, chosen
from moco.cli.verdict import _print as print_verdict
from moco.data.procedural import procedural
from moco.data.reading import Reading
from moco.encoder import digest
from moco.evaluate import linear, logistic
from moco.evaluate.finetune import IMAGENET, INATURALIST, FineTuning
from moco.export.backbone import backbone_bytes, backbone_metadata, load_backbone
from moco.launch import pretrain
from moco.recipe import InBatch, Monitor, TiedKeys
from moco.recipes import get
from moco.starts import choose_start, open_setting, untrained_start
from moco.supervised import counterpart, finetune, supervised
from moco.verdict import Row, verdict
from moco.weights import open_weights
from test_cli import TINY, call
from test_run import save_arrays

QUICK = FineTuning(lr=0.1, epochs=3, schedule="cosine", batch=25)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worth")
    data = save_arrays(folder)
    call("pretrain", "demo", *TINY, "--data", data, "--out", folder / "run")
    return folder / "run"


def json_of(capsys, *words):
    capsys.readouterr()
    call(*words, "--json")
    return json.loads(capsys.readouterr().out)


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


def test_weights_of_a_file_are_measured_as_a_run_s(run, capsys):
    file, images = run / "backbone.safetensors", run.parent / "images.npz"
    words = "linear", "--kind", "logistic", "--data", images
    assert json_of(capsys, *words, file)["top1"] == json_of(capsys, *words, run)["top1"]
    assert (
        json_of(capsys, "linear", file, "--kind", "paper", "--epochs", 1, "--data", images)["start"]
        == file.name
    )
    net, state = load_backbone(file), {}
    for name, value in net.state_dict().items():
        state[f"module.encoder_q.{name}"] = value
    torch.save({"state_dict": state, "arch": "resnet10"}, run.parent / "released.pth.tar")
    assert 0 <= json_of(capsys, "linear", run.parent / "released.pth.tar", *words[1:])["top1"] <= 100
    call("linear", file, expect=2)
    assert "does not say on which images it was trained; give --data" in capsys.readouterr().err
    for command in "verdict", "supervised":
        call(command, file, "--data", images, expect=2)
        assert "holds no run" in capsys.readouterr().err


def deep_images(folder, top=4095):
    """Labelled 16-bit images whose values end at `top`."""
    arrays = dict(np.load(save_arrays(folder)))
    for name in "images", "test_images":
        arrays[name] = (arrays[name] / 255 * top).round().astype(np.uint16)
        arrays[name].flat[0] = top
    np.savez(folder / "deep.npz", **arrays)
    return folder / "deep.npz"


def test_weights_of_a_file_of_deep_images_are_measured_as_a_run_s(tmp_path, capsys):
    deep, out = deep_images(tmp_path), tmp_path / "run"
    call("pretrain", "demo", *TINY, "--data", deep, "--out", out, "--reading.background", 0.5)
    file = out / "backbone.safetensors"
    of_run, of_file = open_weights(out), open_weights(file)
    assert of_file.values.views.range == of_run.values.views.range == (0, 4095)
    assert of_file.values.reading == of_run.values.reading == Reading(background=0.5)
    assert of_file.views.unit(torch.tensor([4095], dtype=torch.uint16)).item() == 1
    words = "linear", "--kind", "logistic", "--data", deep
    whole = json_of(capsys, *words, out)["top1"]
    assert json_of(capsys, *words, file)["top1"] == whole
    assert json_of(capsys, *words, out, "--weights", file)["top1"] == whole


def test_images_of_another_depth_are_refused_or_read_as_the_run_s(run, tmp_path, capsys):
    deep = deep_images(tmp_path)
    for words in (
        ("linear", run, "--data", deep),
        ("knn", run, "--data", deep),
        ("embed", run, "--data", deep),
    ):
        call(*words, expect=2)
        assert "has uint16 pixels, the weights were trained on uint8" in capsys.readouterr().err
    files = tmp_path / "files"
    for i in range(20):
        (files / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        shade = np.full((16, 16, 3), 12 * i, np.uint8)
        Image.fromarray(shade).save(files / "ab"[i % 2] / f"{i:02}.png")
    before = json_of(capsys, "knn", run, "--data", files, "--k", 3)
    Image.fromarray(np.full((16, 16), 257 * 12 * 19, np.uint16)).save(files / "b" / "19.png")
    assert json_of(capsys, "knn", run, "--data", files, "--k", 3) == before


def test_a_search_reads_its_image_as_the_run_read_its_own(tmp_path, capsys):
    deep, out = deep_images(tmp_path), tmp_path / "run"
    call("pretrain", "demo", *TINY, "--data", deep, "--out", out)
    pixels = np.load(deep)["images"][3]
    imagecodecs = pytest.importorskip("imagecodecs")
    (tmp_path / "query.png").write_bytes(imagecodecs.png_encode(pixels))
    found = json_of(capsys, "search", out, tmp_path / "query.png", "--k", 1)
    assert (found[0]["name"], found[0]["similarity"]) == ("3", 1.0)


def test_other_weights_keep_their_own_range_of_pixel_values(run, tmp_path):
    net, about = load_backbone(run / "backbone.safetensors"), backbone_metadata(run / "backbone.safetensors")
    about = {name: value for name, value in about.items() if name != "pixels"}
    other = tmp_path / "other.safetensors"
    other.write_bytes(backbone_bytes(net, about))
    setting = open_setting(other, str(deep_images(tmp_path)))
    other.write_bytes(backbone_bytes(net, about | {"range": [0, 4095], "pixels": "uint16"}))
    assert choose_start(setting, str(other)).values.views.range == (0, 4095)
    other.write_bytes(backbone_bytes(net, about | {"range": [0, 4095], "pixels": "uint8"}))
    with pytest.raises(ValueError, match="has uint16 pixels, the weights were trained on uint8"):
        choose_start(setting, str(other))


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


def test_weights_from_elsewhere_are_fed_as_they_ask(run, tmp_path):
    setting = open_setting(run)
    other = tmp_path / "other.safetensors"
    about = backbone_metadata(run / "backbone.safetensors") | {"size": 24, "mean": [0.5] * 3}
    other.write_bytes(backbone_bytes(load_backbone(run / "backbone.safetensors"), about))
    start = choose_start(setting, str(other))
    images = next(iter(start_images(start, setting)))
    assert images.shape[-1] == 24
    assert not start.head
    import torchvision

    file = tmp_path / "r18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), file)
    start = choose_start(setting, f"torchvision/resnet18:{file}")
    assert next(iter(start_images(start, setting))).shape[-1] == 224
    with pytest.raises(ValueError, match="does not hold torchvision/resnet34"):
        choose_start(setting, f"torchvision/resnet34:{file}")
    weights = {
        f"module.{name}": tensor.contiguous() for name, tensor in start.encoder.trunk.state_dict().items()
    }
    torch.save({"model": weights, "epoch": 89}, file)  # as training scripts save them
    save_file(torch.load(file)["model"], tmp_path / "r18.safetensors")  # and as timm's are shipped
    for again in file, tmp_path / "r18.safetensors":
        other = choose_start(setting, f"torchvision/resnet18:{again}")
        assert digest(other.encoder.trunk) == digest(start.encoder.trunk)
    trunk = load_backbone(run / "backbone.safetensors")
    state = {f"module.encoder_q.{name}": tensor for name, tensor in trunk.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "released.pth")
    start = choose_start(setting, str(tmp_path / "released.pth"))
    assert torch.equal(start.encoder.trunk.state_dict()["conv1.weight"], trunk.state_dict()["conv1.weight"])


def start_images(start, setting):
    return setting.test.take(torch.arange(4)).plain(start.values, setting.device).batches()


def test_raw_pixels_keep_distances_up_to_a_rotation(run):
    setting = open_setting(run)
    train, test = raw_pixels(setting)
    assert train.shape[1] == test.shape[1] <= 256
    assert train.mean(0).abs().max() < 1e-4


def test_untrained_and_run_differ(run):
    setting = open_setting(run)
    trained, untrained = choose_start(setting, None), untrained_start(setting)
    a, b = (start.features(setting.test, setting.device).trunk for start in (trained, untrained))
    assert not torch.allclose(a, b)


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
    shown = capsys.readouterr().out
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
        ("linear {run} --data {tmp}/grey.npz", "images of 1 channels, the weights were trained on 3"),
        ("knn {run} --data {tmp}/grey.npz", "images of 1 channels, the weights were trained on 3"),
        ("diagnose {run} --data {tmp}/grey.npz", "images of 1 channels, the weights were trained on 3"),
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
