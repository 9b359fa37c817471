"""Residual trunks as the paper counts them, at any width and for small images.

Blocks and key names are torchvision's, so a trunk's state dict loads in `torchvision.models`
wherever that has the same network. torchvision's `wide_resnet50_2` and `resnext50_32x4d` are other
networks than the paper's R50w2x and RX50.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, conv1x1

from moco.norm import GroupedBatchNorm2d

Stem = Literal["imagenet", "small", "small2"]

# block, blocks per stage, first-stage channels, groups, channels per group at the first stage
ARCHITECTURES: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...], int, int, int]] = {
    "resnet10": (BasicBlock, (1, 1, 1, 1), 64, 1, 64),
    "resnet18": (BasicBlock, (2, 2, 2, 2), 64, 1, 64),
    "resnet34": (BasicBlock, (3, 4, 6, 3), 64, 1, 64),
    "resnet50": (Bottleneck, (3, 4, 6, 3), 64, 1, 64),
    "resnet101": (Bottleneck, (3, 4, 23, 3), 64, 1, 64),
    "resnet152": (Bottleneck, (3, 8, 36, 3), 64, 1, 64),
    "resnext50_32x8d": (Bottleneck, (3, 4, 6, 3), 64, 32, 8),
    "resnet50w2x": (Bottleneck, (3, 4, 6, 3), 128, 1, 64),
    "resnet50w4x": (Bottleneck, (3, 4, 6, 3), 256, 1, 64),
}


class ResNet(nn.Module):
    """A residual network without classifier: (N, channels, H, W) to pooled features (N, features).

    Args:
        block, layers: residual block and blocks per stage.
        width: channels of the first stage; every other stage scales with it (64 is standard,
            128 and 256 are the paper's w2x and w4x).
        groups, width_per_group: of ResNeXt.
        stem: "imagenet" is a 7x7 stride-2 convolution and a max pool; "small" a 3x3 stride-1
            convolution and no pool, for images of about 32 pixels; "small2" the same with stride
            2, for processors on which full-resolution stages cost more than they give.
        channels: input channels.
        bn_group: images per batch-normalisation group (see `GroupedBatchNorm2d`).

    Source: He et al. 2016; stem of small images from the released CIFAR-10 demo. Initial values
    are torchvision's: Kaiming normal (fan out) convolutions, no zero-initialised residuals. The
    convolution of the small stem has `torch.nn.Conv2d`'s, because the demo puts it in afterwards.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: Sequence[int],
        *,
        width: int = 64,
        groups: int = 1,
        width_per_group: int = 64,
        stem: Stem = "imagenet",
        channels: int = 3,
        bn_group: int | None = None,
    ):
        super().__init__()

        def norm(features: int) -> GroupedBatchNorm2d:
            return GroupedBatchNorm2d(features, bn_group)

        def stage(inputs: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
            outputs = planes * block.expansion
            shortcut = None
            if stride != 1 or inputs != outputs:
                shortcut = nn.Sequential(conv1x1(inputs, outputs, stride), norm(outputs))
            shape = {"groups": groups, "base_width": width_per_group, "norm_layer": norm}
            return nn.Sequential(
                block(inputs, planes, stride, shortcut, **shape),
                *(block(outputs, planes, **shape) for _ in range(blocks - 1)),
            )

        kernel, stride, padding = {"imagenet": (7, 2, 3), "small": (3, 1, 1), "small2": (3, 2, 1)}[stem]
        self.conv1 = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
        self.bn1 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        inputs = width
        for number, blocks in enumerate(layers):
            planes = width * 2**number
            self.add_module(
                f"layer{number + 1}", stage(inputs, planes, blocks, stride=1 if number == 0 else 2)
            )
            inputs = planes * block.expansion
        self.stages = [f"layer{number + 1}" for number in range(len(layers))]
        self.features = inputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not (stem == "small" and module is self.conv1):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return torch.flatten(x.mean((2, 3)), 1)


@torch.no_grad()
def zero_residual(net: nn.Module) -> None:
    """Set the scale of each residual block's last normalisation to zero, so that blocks begin as identities.

    Raises:
        ValueError: if the network has no such block.

    Source: Goyal et al. 2017, Section 5.1; MoCo v3's ResNets.
    """
    found = False
    for block in net.modules():
        if isinstance(block, BasicBlock | Bottleneck):
            last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
            assert isinstance(last, nn.BatchNorm2d)
            last.weight.zero_()
            found = True
    if not found:
        raise ValueError("encoder.zero_residual needs a ResNet, ours or torchvision's; leave it off")


def resnet(
    name: str,
    *,
    width: int | None = None,
    stem: Stem = "imagenet",
    channels: int = 3,
    bn_group: int | None = None,
) -> ResNet:
    """A trunk of `ARCHITECTURES` by name.

    Parameters without classifier: resnet50 23.5 M, resnext50_32x8d 46.0 M, resnet50w2x 93.9 M,
    resnet50w4x 375.4 M (the 24 / 46 / 94 / 375 M of the paper's Table 1).

    Args:
        name: a key of `ARCHITECTURES`.
        width: first-stage channels; None takes the architecture's own.
        stem, channels, bn_group: see `ResNet`.

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {name!r}; there are {', '.join(ARCHITECTURES)}")
    block, layers, own_width, groups, width_per_group = ARCHITECTURES[name]
    return ResNet(
        block,
        layers,
        width=width or own_width,
        groups=groups,
        width_per_group=width_per_group,
        stem=stem,
        channels=channels,
        bn_group=bn_group,
    )
