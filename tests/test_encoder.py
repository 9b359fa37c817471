import pytest
import torch
import torchvision
from torch import nn

from moco.encoder import Encoder, head, trunk
from moco.norm import GroupedBatchNorm2d
from moco.resnet import ARCHITECTURES, resnet


def parameters(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet50", 23.51), ("resnext50_32x8d", 45.97), ("resnet50w2x", 93.91), ("resnet50w4x", 375.38)],
)
def test_parameters_are_those_of_table_1(name, millions):
    with torch.device("meta"):
        assert parameters(resnet(name)) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_state_dicts_are_torchvisions(name):
    with torch.device("meta"):
        ours = resnet(name).state_dict()
        theirs = getattr(torchvision.models, name)().state_dict()
    shapes = {key: value.shape for key, value in theirs.items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in ours.items()} == shapes


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_same_weights_give_torchvisions_features(name):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)().eval()
    theirs.fc = torch.nn.Identity()
    ours = resnet(name).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x))


def test_initial_weights_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    ours, theirs = resnet("resnet18"), torchvision.models.resnet18()
    for name, tensor in theirs.named_parameters():
        if not name.startswith("fc."):
            assert ours.get_parameter(name).std().item() == pytest.approx(tensor.std().item(), rel=0.1)


def test_small_stems_first_layer_keeps_torchs_initial_values_as_in_the_released_demo():
    """The demo puts a new first convolution into a network whose others have their values already."""
    torch.manual_seed(0)
    bound = 1 / (3 * 3 * 3) ** 0.5
    weights = resnet("resnet18", stem="small").conv1.weight
    assert weights.abs().max().item() <= bound
    assert weights.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.parametrize("stem", ["imagenet", "small", "small2"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_encoder_gives_unit_vectors(stem, channels):
    net, features = trunk("resnet18", width=8, stem=stem, channels=channels)
    encoder = Encoder(net, head("mlp", features, 32))
    images = torch.randn(4, channels, 32, 32)
    vectors = encoder(images)
    assert vectors.shape == (4, 32)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    assert encoder.features(images).shape == (4, features) == (4, 64)


def test_small_stem_keeps_the_resolution():
    net = resnet("resnet18", width=8, stem="small")
    assert net.conv1(torch.zeros(1, 3, 32, 32)).shape[2:] == (32, 32)
    assert isinstance(net.maxpool, torch.nn.Identity)


def test_heads_are_the_papers():
    assert isinstance(head("linear", 512), torch.nn.Linear)
    assert head("linear", 512).bias is not None
    mlp = head("mlp", 2048)
    assert [type(m).__name__ for m in mlp] == ["Linear", "ReLU", "Linear"]
    assert (mlp[0].in_features, mlp[0].out_features, mlp[2].out_features) == (2048, 2048, 128)


def test_reduced_precision_gives_unit_vectors_in_single_precision():
    net, features = trunk("resnet18", width=8, stem="small")
    encoder = Encoder(net, head("linear", features), autocast=torch.bfloat16).eval()
    vectors = encoder(torch.randn(3, 3, 16, 16))
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("name", ["torchvision/resnet18", "torchvision/mobilenet_v3_small", "timm/resnet10t"])
def test_trunks_of_libraries(name):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    net, features = trunk(name, channels=2, bn_group=2)
    assert net(torch.randn(4, 2, 64, 64)).shape == (4, features)
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert all(
        isinstance(m, GroupedBatchNorm2d) for m in norms if type(m).__module__ != "timm.layers.norm_act"
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet51", {}, "unknown architecture 'resnet51'; there are resnet10"),
        ("torchvision/nothing", {}, "torchvision has no classifier 'nothing'"),
        ("keras/resnet", {}, "unknown library in 'keras/resnet'"),
        ("torchvision/resnet18", {"width": 8}, "width and stem belong to resnet10"),
    ],
)
def test_impossible_trunks_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        trunk(name, **options)


def test_wide_networks_are_not_torchvisions():
    with torch.device("meta"):
        assert parameters(torchvision.models.wide_resnet50_2()) < 0.8 * parameters(resnet("resnet50w2x"))
    assert "wide_resnet50_2" not in ARCHITECTURES


@pytest.mark.parametrize(("stride", "height", "width"), [(2, 1, 1), (2, 4, 1), (4, 3, 3), (2, 4, 4)])
def test_gradients_in_bfloat16_hold_nothing_from_beyond_narrow_images(stride, height, width):
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(16, 32, 3, stride, 1, bias=False), nn.Flatten())
    images, weight = torch.randn(4, 16, height, width), trunk[0].weight
    found = []
    for autocast in None, torch.bfloat16:
        encoder = Encoder(trunk, nn.Identity(), autocast=autocast).to(memory_format=torch.channels_last)
        for left_in_memory in float("nan"), 1e4:
            weight.grad = None
            loss = encoder(images)[:, ::3].sum()
            junk = [torch.full((2**size,), left_in_memory) for size in range(8, 21)]
            del junk
            loss.backward()
            found.append(weight.grad.clone())
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    torch.testing.assert_close(found[3], found[2], rtol=0, atol=0)
    assert (found[2] - found[0]).norm() <= 0.02 * found[0].norm()
