"""Weights that protocols measure: of files, other libraries, no training; images read as theirs were."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from commands import TINY, call, json_of
from moco.assess import raw_pixels
from moco.data.reading import Reading
from moco.encoder import digest
from moco.evaluate.finetune import FineTuning
from moco.export.backbone import backbone_bytes, backbone_metadata, load_backbone
from moco.starts import choose_start, open_setting, untrained_start
from moco.weights import open_weights
from tiny import save_arrays

QUICK = FineTuning(lr=0.1, epochs=3, schedule="cosine", batch=25)


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
        assert (
            "has uint16 pixels where 8 bits are asked for (--reading.bits 8, or weights"
            in capsys.readouterr().err
        )
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
