"""Checkpoints that others wrote: their features, their heads, and what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from moco import load_backbone
from moco.encoder import head, trunk
from moco.export.backbone import backbone_metadata
from moco.export.target import export_backbone
from moco.export.targets import TARGETS
from moco.weights import open_weights
from networks import NARROW, about, network


def released(net, top):
    """As `main_moco.py` saves, after DistributedDataParallel."""
    state = {f"encoder_q.{k}": v for k, v in net.state_dict().items()}
    state |= {f"encoder_q.fc.{k}": v for k, v in top.state_dict().items()}
    state |= {f"encoder_k.{k}": torch.zeros_like(v) for k, v in net.state_dict().items()}
    state |= {"queue": torch.zeros(16, 40), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    return {"epoch": 200, "arch": "resnet10", "state_dict": {f"module.{k}": v for k, v in state.items()}}


def numbered(net, prefix, numbers):
    names = dict(zip(("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"), numbers, strict=True))
    return {
        f"{prefix}{names[key.partition('.')[0]]}.{key.partition('.')[2]}": value
        for key, value in net.state_dict().items()
    }


def states(net, small, top):
    """State dicts as others write them, with the trunk they hold."""
    trailing = {f"backbone.{k}": torch.zeros_like(v) for k, v in net.state_dict().items()}
    return {
        "released": (released(net, top), net),
        "v3": ({"state_dict": {f"module.base_encoder.{k}": v for k, v in net.state_dict().items()}}, net),
        "demo": (
            {"state_dict": numbered(small, "encoder_q.net.", (0, 1, 3, 4, 5, 6))
             | {"encoder_q.net.9.weight": torch.zeros(16, 64), "encoder_q.net.9.bias": torch.zeros(16)}},
            small,
        ),
        "lightly-numbered": ({"state_dict": numbered(net, "backbone.", (0, 1, 4, 5, 6, 7))}, net),
        "lightly-own-resnet": (
            {k.replace("downsample", "shortcut"): v
             for k, v in numbered(small, "backbone.", range(6)).items()},
            small,
        ),
        "lightly-reference": (
            {"state_dict": trailing | {f"query_backbone.{k}": v for k, v in net.state_dict().items()}}, net,
        ),
        "solo-learn": ({"state_dict": {f"backbone.{k}": v for k, v in net.state_dict().items()}}, net),
        "torchvision": (dict(net.state_dict()) | {"fc.weight": torch.zeros(1000, 64)}, net),
        "compiled": ({f"_orig_mod.module.{k}": v for k, v in net.state_dict().items()}, net),
        "compiled-inside": (
            {"state_dict": numbered(net, "model.backbone._orig_mod.", (0, 1, 4, 5, 6, 7))}, net,
        ),
        "wrapped-inside": ({f"encoder_q.module.{k}": v for k, v in net.state_dict().items()}, net),
    }  # fmt: skip


NAMES = ["released", "v3", "demo", "lightly-numbered", "lightly-own-resnet", "lightly-reference"]
NAMES += ["solo-learn", "torchvision", "compiled", "compiled-inside", "wrapped-inside"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", [".pth.tar", ".safetensors"])
def test_other_peoples_files_give_their_features(name, suffix, tmp_path):
    small = network(about("resnet10", width=8, stem="small"), seed=2)
    state, net = states(network(NARROW), small, head("mlp", 64, 16))[name]
    path = tmp_path / f"theirs{suffix}"
    if suffix == ".safetensors":
        tensors = state.get("state_dict", state)
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, path)
    else:
        torch.save(state, path)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(load_backbone(path)(x), net(x))
    assert backbone_metadata(path)["size"] == (32 if net is small else 224)
    weights = open_weights(path)
    torch.testing.assert_close(weights.encoder.features(x), net(x))
    assert weights.has_head == (name in ("released", "demo"))


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_the_released_head_comes_along(kind, tmp_path):
    net, top = network(NARROW), head(kind, 64, 16)
    torch.save(released(net, top), tmp_path / "moco.pth.tar")
    weights = open_weights(tmp_path / "moco.pth.tar")
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(weights.encoder(x), nn.functional.normalize(top(net(x)), dim=1))
    assert "resnet10, width 8 of MoCo" in repr(weights)


def test_v3s_transformers_come_with_their_twelve_heads(tmp_path):
    pytest.importorskip("timm")
    net, _ = trunk("timm/vit_small_patch16_224,num_heads=12")
    for p in net.parameters():  # initial values are small enough to hide how many heads there are
        nn.init.normal_(p, std=0.1)
    state = {f"module.base_encoder.{k}": v for k, v in net.state_dict().items()}
    state |= {
        "module.base_encoder.head.0.weight": torch.zeros(4, 384),
        "module.predictor.0.weight": torch.zeros(4, 4),
    }
    state |= {f"module.momentum_encoder.{k}": torch.zeros_like(v) for k, v in net.state_dict().items()}
    torch.save({"arch": "vit_small", "state_dict": state}, tmp_path / "vit-s-300ep.pth.tar")
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(load_backbone(tmp_path / "vit-s-300ep.pth.tar")(x), net.eval()(x))
    facts = backbone_metadata(tmp_path / "vit-s-300ep.pth.tar")
    assert (facts["size"], facts["origin"]) == (224, "MoCo v3")
    state["module.base_encoder.pos_embed"] = torch.zeros(1, 5, 384)
    torch.save({"state_dict": state}, tmp_path / "other.pth.tar")
    with pytest.raises(ValueError, match="patches of 16 pixels at 32, which is none of v3's"):
        load_backbone(tmp_path / "other.pth.tar")


def test_solo_learns_stem_keeps_its_two_pixels_of_padding(tmp_path):
    small = network(about("resnet10", width=8, stem="small"))
    state = {f"backbone.{k}": v for k, v in small.state_dict().items()}
    torch.save({"state_dict": state | {"projector.0.weight": torch.zeros(4, 64)}}, tmp_path / "solo.ckpt")
    small.conv1.padding = (2, 2)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(load_backbone(tmp_path / "solo.ckpt")(x), small(x))
    facts = backbone_metadata(tmp_path / "solo.ckpt")
    assert export_backbone(small, facts, TARGETS["safetensors"], tmp_path / "out").difference == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {"vit.weight": torch.zeros(1)}}, "no residual network that is understood"),
        ([1], "holds no state dict but a list"),
        ({"student": {"conv1.weight": torch.zeros(1)}, "epoch": 3}, "holds no tensors where a state dict"),
        ({"args": Path("x")}, "without running code"),
    ],
)
def test_files_that_are_not_understood_are_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=message):
        load_backbone(tmp_path / "x.pth")


def test_torchvisions_other_wide_network_is_not_taken_for_the_papers(tmp_path):
    import torchvision

    with torch.device("meta"):
        shapes = torchvision.models.wide_resnet50_2().state_dict()
    tensors = {name: torch.zeros(()).expand(t.shape) for name, t in shapes.items()}
    torch.save(tensors, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"which is none of .*other networks"):
        load_backbone(tmp_path / "x.pth")
