"""Weights that leave, loaded where they went by the lines that are shown, and weights that come in."""

import json
import os

import numpy as np
import pytest
import torch
from torch import nn

from moco.cli import main
from moco.export.backbone import backbone_bytes
from moco.export.formats import detectron2_name
from moco.export.libraries import huggingface_name
from moco.export.target import export_backbone
from moco.export.targets import TARGETS
from moco.resnet import resnet
from moco.weights import export_weights
from networks import NARROW, about, network

NEEDS = {"timm": "timm", "huggingface": "transformers", "onnx": "onnxruntime", "detectron2": "detectron2"}


@pytest.mark.parametrize(
    ("target", "facts"),
    [
        ("torchvision", about()),
        ("torchvision", about("resnet10", stem="small")),
        ("torchvision", about("resnet18", stem="small2", channels=1)),
        ("torchvision", about("torchvision/resnet18")),
        ("torchvision", about("torchvision/mobilenet_v3_small")),
        ("timm", about()),
        ("timm", about("resnet10", channels=2)),
        ("timm", about("resnet18", stem="small")),
        ("timm", about("timm/resnet10t")),
        ("timm", about("timm/vit_tiny_patch16_224,img_size=40,patch_size=8,num_heads=4")),
        ("torchvision", about("torchvision/mobilenet_v3_small,reduced_tail=True")),
        ("timm", about("resnet10", width=16, stem="small2")),
        ("timm", about("resnet18", width=24, stem="small", channels=2)),
        ("timm", about("resnet50", width=8)),
        ("huggingface", about()),
        ("huggingface", about("resnet10", width=8, channels=4)),
        ("onnx", about("resnet10", width=8, stem="small")),
        ("onnx", about("torchvision/resnet18")),
        ("torch", about("resnet10", width=8, stem="small")),
        ("safetensors", about("resnet10", width=8, stem="small2")),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value['arch']}-{value['stem']}",
)
def test_features_are_the_same_there(target, facts, tmp_path):
    if target in NEEDS:
        pytest.importorskip(NEEDS[target])
    done = export_backbone(network(facts), facts, TARGETS[target], tmp_path / target)
    assert done.difference is not None
    assert done.difference <= (1e-4 if target == "onnx" else 1e-5)
    assert "CC0-1.0" in "".join(p.read_bytes().decode("latin1") for p in (tmp_path / target).iterdir())


@pytest.mark.parametrize("arch", ["resnext50_32x8d", "resnet50"])
def test_wider_families_are_built_as_they_are(arch, tmp_path):
    pytest.importorskip("timm")
    facts = about(arch, size=32)
    net = network(facts)
    for target in "torchvision", "timm":
        assert export_backbone(net, facts, TARGETS[target], tmp_path / target).difference < 1e-5


def test_a_stem_padded_by_two_is_kept(tmp_path):
    pytest.importorskip("timm")
    for width in 64, 8:
        facts = about("resnet10", width=width, stem="small") | {"stem_padding": 2}
        net = network(facts)
        net.conv1.padding = (2, 2)
        assert export_backbone(net, facts, TARGETS["timm"], tmp_path / f"of-{width}").difference < 1e-5


def test_onnx_takes_any_batch(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    facts = about("resnet10", width=8, stem="small")
    net = network(facts)
    files = TARGETS["onnx"].files(net, facts, tmp_path)
    assert not list(tmp_path.iterdir())
    session = runtime.InferenceSession(files["backbone.onnx"])
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["moco"])
    assert metadata["preparation"]["centre_crop"] == 40
    images = torch.randn(7, 3, 40, 40)
    got = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    torch.testing.assert_close(got, net(images).detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("target", "facts", "message"),
    [
        ("torchvision", about(width=16), "torchvision cannot express resnet18 of width 16.*64 channels"),
        ("timm", about("resnet18", width=12), "timm cannot express resnet18 of width 12.*multiples of 8"),
        ("huggingface", about(stem="small"), "begins with a 7x7"),
        ("huggingface", about("resnext50_32x8d"), "has no groups"),
        ("huggingface", about("timm/resnet10t"), "a library's own goes back"),
        ("detectron2", about(stem="small"), "7x7 convolution and a pool"),
        ("detectron2", about("resnet10"), "18, 34, 50"),
        ("detectron2", about(width=32), "64 channels at first"),
    ],
)
def test_what_a_library_cannot_express_is_refused_before_anything_is_written(
    target, facts, message, tmp_path
):
    with pytest.raises(ValueError, match=message):
        export_backbone(nn.Identity(), facts, TARGETS[target], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", TARGETS)
def test_a_full_disk_leaves_no_part_of_a_file(tmp_path, monkeypatch, name):
    for package in TARGETS[name].writes_with:
        pytest.importorskip(package)
    facts = about("resnet18")
    (tmp_path / "weights").mkdir()
    old = tmp_path / "weights" / next(iter(TARGETS[name].files(network(facts), facts, tmp_path)))
    old.write_bytes(b"of an earlier export")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/weights/"):
        export_backbone(network(facts), facts, TARGETS[name], tmp_path / "weights")
    assert list((tmp_path / "weights").iterdir()) == [old]
    assert old.read_bytes() == b"of an earlier export"


def test_a_wrong_network_does_not_pass(tmp_path):
    facts = about("resnet10", width=8)

    class Wrong(type(TARGETS["safetensors"])):
        def files(self, net, about, folder):
            return super().files(network(facts, seed=1), about, folder)

    with pytest.raises(RuntimeError, match=r"differ by .*hold another network"):
        export_backbone(network(facts), facts, Wrong(), tmp_path)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_detectron2_names_are_the_released_converters(arch):
    names = {detectron2_name(name) for name in resnet(arch).state_dict()}
    assert len(names) == len(resnet(arch).state_dict())
    assert {"stem.conv1.weight", "stem.conv1.norm.running_mean", "res2.0.conv1.weight"} <= names
    assert {"res3.0.shortcut.weight", "res3.0.shortcut.norm.bias", "res5.1.conv2.norm.weight"} <= names
    assert not [name for name in names if "bn" in name or "downsample" in name or "layer" in name]


def test_detectron2_files_hold_every_tensor_and_the_papers_settings(tmp_path):
    facts = about("resnet18")
    net = network(facts)
    done = export_backbone(net, facts, TARGETS["detectron2"], tmp_path)
    content = torch.load(tmp_path / "moco.pth", weights_only=True)
    for name, tensor in net.state_dict().items():
        assert torch.equal(content["model"][detectron2_name(name)], tensor)
    assert content["matching_heuristics"] is True
    settings = (tmp_path / "moco.yaml").read_text()
    for line in "DEPTH: 18", "FREEZE_AT: 0", "STRIDE_IN_1X1: false", "PIXEL_MEAN: [127.5, 102.0, 76.5]":
        assert line in settings
    assert done.difference is None or done.difference < 1e-5


def test_deep_images_are_prepared_there_as_the_run_did(tmp_path):
    facts = about("resnet18", width=8) | {"range": (100, 4195)}
    mean, std = np.array(facts["mean"]), np.array(facts["std"])
    pixel = np.array([100, 2000, 4195])
    expected = ((pixel - 100) / 4095 - mean) / std
    pytest.importorskip("transformers")
    export_backbone(network(facts), facts, TARGETS["huggingface"], tmp_path / "hf")
    told = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    fed = (pixel * told["rescale_factor"] - told["image_mean"]) / told["image_std"]
    np.testing.assert_allclose(fed, expected, rtol=1e-9)
    facts = about("resnet18") | {"range": (100, 4195)}
    export_backbone(network(facts), facts, TARGETS["detectron2"], tmp_path / "d2")
    text = (tmp_path / "d2" / "moco.yaml").read_text()
    lines = dict(line.strip().split(": ", 1) for line in text.splitlines() if "PIXEL_" in line)
    fed = (pixel - np.array(json.loads(lines["PIXEL_MEAN"]))) / json.loads(lines["PIXEL_STD"])
    np.testing.assert_allclose(fed, expected, atol=1e-4)
    pytest.importorskip("timm")
    facts = about("resnet18") | {"range": (100, 4195)}
    export_backbone(network(facts), facts, TARGETS["timm"], tmp_path / "timm")
    told = json.loads((tmp_path / "timm" / "config.json").read_text())["pretrained_cfg"]
    np.testing.assert_allclose((pixel / 255 - told["mean"]) / told["std"], expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("image_size", "short"), [([40, 40], 40), ([64, 64], 46), ([40, 50], 46), (None, 46)]
)
def test_images_are_cropped_there_as_they_were_measured(image_size, short, tmp_path):
    """Those of the evaluation size are taken whole; of others the middle 7/8."""
    pytest.importorskip("transformers")
    pytest.importorskip("timm")
    facts = about("resnet10") | {"image_size": image_size}
    export_backbone(network(facts), facts, TARGETS["huggingface"], tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["size"] == {"shortest_edge": short}
    export_backbone(network(facts), facts, TARGETS["timm"], tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]["crop_pct"] == 40 / short


def test_huggingface_names_are_all_different():
    names = [huggingface_name(name) for name in resnet("resnet50").state_dict()]
    assert len(set(names)) == len(names)
    assert "encoder.stages.0.layers.0.layer.2.convolution.weight" in names


def test_the_command_prints_the_lines_that_load(tmp_path, capsys):
    path = tmp_path / "backbone.safetensors"
    path.write_bytes(backbone_bytes(network(NARROW), NARROW))
    with pytest.raises(SystemExit, match="0"):
        main(["export", str(path), "--to", "safetensors"])
    shown = capsys.readouterr().out
    assert "largest difference of any feature 0.0e+00" in shown
    assert f'model = moco.load_backbone("{tmp_path}/export/safetensors/backbone.safetensors")' in shown
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(path), "--to", "torchvision"])
    assert "torchvision cannot express resnet10 of width 8" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(path), "--to", "caffe"])
    assert "--to must be one of torchvision" in capsys.readouterr().err


def test_all_goes_on_after_a_library_that_fails(tmp_path, monkeypatch, capsys):
    facts = about("resnet10", width=8, stem="small")
    path = tmp_path / "backbone.safetensors"
    path.write_bytes(backbone_bytes(network(facts), facts))

    def fails(*_):
        raise RuntimeError("its exporter\nhas no such operation")

    monkeypatch.setattr(TARGETS["torch"], "files", fails)
    with pytest.raises(SystemExit, match="1"):
        main(["export", str(path), "--to", "all", "--out", str(tmp_path / "out"), "--json"])
    found = {row["target"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(found) == set(TARGETS)
    assert [name for name, row in found.items() if row["failed"]] == ["torch"]
    assert found["torch"]["why_not"] == "its exporter"
    assert found["safetensors"]["difference"] == 0
    with pytest.raises(RuntimeError, match="no such operation"):
        export_weights(path, ["torch"], out=tmp_path / "out")
