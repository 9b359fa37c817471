"""A pre-trained trunk taken apart into what detectors and segmenters are built on."""

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from moco.transfer.norm import new_norm
from moco.world import World

STAGES = ("layer1", "layer2", "layer3", "layer4")


def require_residual(trunk: nn.Module) -> None:
    """Refuse a trunk that cannot be taken apart.

    Raises:
        ValueError: if it is not a residual network of four stages, of `moco.resnet` or torchvision.
    """
    wanted = (
        "detection and segmentation take residual networks of four stages, of this package or torchvision, "
        "such as resnet18, resnet50 or resnext50_32x8d"
    )
    if missing := [name for name in ("conv1", "bn1", "maxpool", *STAGES) if not hasattr(trunk, name)]:
        raise ValueError(f"{type(trunk).__name__} has no {missing[0]}: {wanted}")
    for name in STAGES:
        for block in trunk.get_submodule(name).children():
            if not isinstance(block, BasicBlock | Bottleneck):
                kind = f"{type(block).__module__}.{type(block).__name__}"
                raise ValueError(f"{type(trunk).__name__}'s {name} has blocks of {kind}: {wanted}")


class Stages(nn.Module):
    """The first stages of a residual trunk, each stage's output kept.

    Args:
        trunk: of `moco.resnet` or torchvision.
        last: number of the last stage, 1 to 4.

    Raises:
        ValueError: if the trunk is not a residual network of four stages.
    """

    def __init__(self, trunk: nn.Module, last: int = 4):
        super().__init__()
        require_residual(trunk)
        parts = trunk.get_submodule
        self.stem = nn.Sequential(parts("conv1"), parts("bn1"), nn.ReLU(inplace=True), parts("maxpool"))
        self.stages = nn.ModuleList(parts(name) for name in STAGES[:last])
        self.channels = [_width(stage) for stage in self.stages]
        self.strides = _strides(self.stem, self.stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        x, outputs = self.stem(images), []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs


class LastStage(nn.Module):
    """Feature maps of the last stage alone: (N, D, H / stride, W / stride), in a list of one."""

    def __init__(self, stages: Stages, after: nn.Module | None = None, channels: int | None = None):
        super().__init__()
        self.body = stages
        self.after = after if after is not None else nn.Identity()
        self.channels = channels or stages.channels[-1]
        self.strides = stages.strides[-1:]
        self.divisor = 1

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.after(self.body(images)[-1])]


class Pyramid(nn.Module):
    """A feature pyramid: five maps of 256 channels, each half the size of the one before.

    Source: MoCo, appendix A.1: batch normalisation also in the new layers of the pyramid.
    """

    def __init__(self, stages: Stages, world: World, channels: int = 256):
        super().__init__()
        self.body = stages
        self.pyramid = FeaturePyramidNetwork(
            stages.channels, channels, extra_blocks=LastLevelMaxPool(), norm_layer=new_norm(world)
        )
        self.channels = channels
        self.strides = [*stages.strides, stages.strides[-1] * 2]
        self.divisor = stages.strides[-1]

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = OrderedDict((str(number), x) for number, x in enumerate(self.body(images)))
        return list(self.pyramid(maps).values())


def dilate(stage: nn.Module) -> nn.Module:
    """Let a stage keep its input's resolution: stride 1, and dilation 2 in every 3x3 convolution, in place.

    Source: MoCo, appendix A.1 (R50-dilated-C5) and A.5. torchvision's `replace_stride_with_dilation`
    leaves the first block's convolution as it is.
    """
    for block in stage.children():
        assert isinstance(block, BasicBlock | Bottleneck)
        block.stride = 1
        if block.downsample is not None:
            block.downsample[0].stride = (1, 1)
        for convolution in (m for m in block.modules() if isinstance(m, nn.Conv2d)):
            convolution.stride = (1, 1)
            if convolution.kernel_size == (3, 3):
                convolution.dilation = convolution.padding = (2, 2)
    return stage


def convolution_and_norm(inputs: int, outputs: int, world: World, dilation: int = 1) -> nn.Sequential:
    """A new 3x3 convolution with trained batch normalisation and ReLU."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, new_norm(world)(outputs), nn.ReLU(inplace=True))


def _width(stage: nn.Module) -> int:
    last = list(stage.children())[-1]
    assert isinstance(last, BasicBlock | Bottleneck)
    return (last.conv3 if isinstance(last, Bottleneck) else last.conv2).out_channels


def _strides(stem: nn.Module, stages: nn.ModuleList) -> list[int]:
    """Pixels between neighbouring cells of each stage's output."""

    def factor(module: nn.Module) -> int:
        total = 1
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                total *= part.stride[0]
            elif isinstance(part, nn.MaxPool2d):
                total *= part.stride if isinstance(part.stride, int) else part.stride[0]
        return total

    strides, total = [], factor(stem)
    for stage in stages:
        first = next(stage.children())
        assert isinstance(first, BasicBlock | Bottleneck)
        total *= first.downsample[0].stride[0] if first.downsample is not None else 1
        strides.append(total)
    return strides
