import pytest
import torch
import torchvision
from safetensors.torch import load_file

from moco.export.backbone import backbone_bytes, backbone_metadata, load_backbone
from moco.resnet import resnet

ABOUT = {"arch": "resnet18", "width": None, "stem": "imagenet", "channels": 3, "size": 224, "mean": [0.5] * 3}


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    net = resnet("resnet18", bn_group=2).to(memory_format=torch.channels_last)
    net(torch.randn(4, 3, 64, 64))  # statistics that are not the initial ones
    path = tmp_path / "backbone.safetensors"
    path.write_bytes(backbone_bytes(net, ABOUT))
    return net.eval(), path


def test_round_trip_gives_the_same_features(saved):
    net, path = saved
    x = torch.randn(2, 3, 64, 64)
    loaded = load_backbone(path)
    assert not loaded.training
    torch.testing.assert_close(loaded(x), net(x))
    assert backbone_metadata(path) == ABOUT


def test_torchvision_takes_it_as_it_is(saved):
    net, path = saved
    theirs = torchvision.models.resnet18()
    missing, unexpected = theirs.load_state_dict(load_file(path), strict=False)
    assert (missing, unexpected) == (["fc.weight", "fc.bias"], [])
    theirs.fc = torch.nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(theirs.eval()(x), net(x))


def test_timm_takes_it_as_it_is(saved):
    timm = pytest.importorskip("timm")
    net, path = saved
    theirs = timm.create_model("resnet18", num_classes=0)
    theirs.load_state_dict(load_file(path))
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(theirs.eval()(x), net(x), atol=1e-5, rtol=1e-5)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_backbone(tmp_path / "none.safetensors")
    other = tmp_path / "other.safetensors"
    other.write_bytes(backbone_bytes(torch.nn.Linear(1, 1), {"size": 3}))
    with pytest.raises(ValueError, match="no residual network that is understood"):
        load_backbone(other)
