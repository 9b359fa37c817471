"""Where fine-tuning starts: what a file says of itself, whoever wrote it."""

import argparse

import pytest
import torch

from moco.encoder import trunk
from moco.export.backbone import backbone_bytes
from moco.transfer.loader import Pixels
from moco.transfer_recipe import Trunk
from moco.transfer_start import open_start


def backbone(folder, **about):
    """A file with what it says of itself beside the architecture."""
    torch.manual_seed(1)
    about = {"arch": "resnet10", "width": 4, "stem": "small", "channels": 3, "size": 32,
             "mean": [0.5] * 3, "std": [0.2] * 3} | about  # fmt: skip
    folder.mkdir()
    path = folder / "backbone.safetensors"
    path.write_bytes(
        backbone_bytes(trunk("resnet10", width=4, stem="small", channels=about["channels"])[0], about)
    )
    return path


def test_a_backbone_says_what_made_it(tmp_path):
    for name in "supervised", "MoCo", "memory bank":
        path = backbone(tmp_path / name, mechanism=name)
        assert open_start(str(path), Trunk()).row == open_start(str(path.parent), Trunk()).row == name
    assert open_start(str(backbone(tmp_path / "lightly", origin="lightly")), Trunk()).row == "lightly"
    earlier = backbone(tmp_path / "earlier")
    (earlier.parent / "supervised.json").write_text("{}")
    assert open_start(str(earlier), Trunk()).row == "supervised"


def test_a_supervised_backbone_of_ours_is_fed_as_it_says(tmp_path):
    start = open_start(f"supervised:{backbone(tmp_path / 'one', mechanism='supervised')}", Trunk())
    assert (start.row, start.trunk.arch, start.trunk.width, start.trunk.stem) == (
        *("supervised", "resnet10"),
        *(4, "small"),
    )
    assert start.pixels == Pixels((0.5,) * 3, (0.2,) * 3)
    assert open_start(f"supervised:{backbone(tmp_path / 'two')}", Trunk()).row == "supervised"
    with pytest.raises(ValueError, match=r"says that it was made by MoCo; start from it with --init .*three"):
        open_start(f"supervised:{backbone(tmp_path / 'three', mechanism='MoCo')}", Trunk())
    with pytest.raises(ValueError, match="takes 1 channel"):
        open_start(f"supervised:{backbone(tmp_path / 'four', channels=1)}", Trunk())


def test_values_from_another_range_are_fed_as_they_were_in_training(tmp_path):
    start = open_start(str(backbone(tmp_path / "one", range=[51, 153])), Trunk())
    value = torch.tensor(128.0)
    fed = (value / 255 - start.pixels.mean[0]) / start.pixels.std[0]
    torch.testing.assert_close(fed, ((value - 51) / 102 - 0.5) / 0.2)
    with pytest.raises(ValueError, match="trained on uint16 pixels; detection and segmentation read 8"):
        open_start(str(backbone(tmp_path / "two", range=[0, 4095], pixels="uint16")), Trunk())


def test_a_checkpoint_of_the_released_code_is_a_start(tmp_path):
    net, _ = trunk("resnet10", width=4, stem="small", channels=3)
    state = {f"module.encoder_q.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"arch": "resnet10", "state_dict": state}, tmp_path / "checkpoint.pth")
    start = open_start(str(tmp_path / "checkpoint.pth"), Trunk())
    assert (start.row, start.trunk.arch, start.trunk.width) == ("MoCo", "resnet10", 4)
    for name, tensor in net.state_dict().items():
        assert torch.equal(start.state[name], tensor)


def test_a_stem_that_pads_more_is_refused(tmp_path):
    with pytest.raises(ValueError, match="its first convolution pads by 2"):
        open_start(str(backbone(tmp_path / "one", stem_padding=2)), Trunk())


def test_supervised_weights_are_read_as_training_scripts_save_them(tmp_path):
    net, _ = trunk("resnet10", width=4, stem="small", channels=3)
    whole = net.state_dict() | {"fc.weight": torch.zeros(10, 32), "fc.bias": torch.zeros(10)}
    values, path = Trunk(arch="resnet10", width=4, stem="small"), tmp_path / "model_89.pth"
    compiled = {f"module._orig_mod.{name}": tensor for name, tensor in whole.items()}
    for content in whole, {"model": whole, "epoch": 89}, {"state_dict": compiled}:
        torch.save(content, path)
        state = open_start(f"supervised:{path}", values).state
        assert state.keys() == net.state_dict().keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())
    torch.save({"model": whole, "args": argparse.Namespace(epochs=90)}, path)
    with pytest.raises(ValueError, match=r"model_89.pth cannot be read without running code that is in it"):
        open_start(f"supervised:{path}", values)
