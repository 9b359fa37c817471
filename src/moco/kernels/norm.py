"""Batch normalisation by groups with the residual sum and the rectifier in the same pass.

The usual form takes a batch normalisation for each group, an addition and a rectifier, each with its
own way through memory; between convolutions that traffic is most of what a GPU waits for.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco.kernels.groups import Normalise
from moco.norm import GroupedBatchNorm2d


class FusedBatchNorm2d(GroupedBatchNorm2d):
    """A grouped batch normalisation, then an optional sum with a residual, then a rectifier.

    Same parameters, buffers and training statistics as `GroupedBatchNorm2d`; in evaluation it is
    torch's own operations.

    Args:
        of: the layer whose parameters, buffers and groups it takes over.
        relu: rectify the result.
    """

    def __init__(self, of: GroupedBatchNorm2d, *, relu: bool):
        super().__init__(of.num_features, of.group_size, eps=of.eps, momentum=of.momentum)
        self.weight, self.bias = of.weight, of.bias
        for name, buffer in of.named_buffers():
            setattr(self, name, buffer)
        self.relu = relu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if not self.training:
            y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
            y = y if residual is None else y + residual
            return F.relu(y) if self.relu else y
        group = len(x) if self.group_size is None else self.group_size
        if len(x) % group:
            raise ValueError(f"a batch of {len(x)} images does not divide into groups of {group}")
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        y, mean, variance = Normalise.apply(x, residual, self.weight, self.bias, group, self.eps, self.relu)
        with torch.no_grad():
            self.running_mean.lerp_(mean.mean(0), self.momentum)
            self.running_var.lerp_(variance.mean(0), self.momentum)
            self.num_batches_tracked.add_(1)
        return y


class FusedBlock(nn.Module):
    """A residual block of torchvision's, basic or bottleneck, with fused normalisation; same keys.

    Args:
        of: the block whose layers it takes over.
    """

    def __init__(self, of: nn.Module):
        super().__init__()
        layers = dict(of.named_children())
        self.last = 3 if "conv3" in layers else 2
        for number in range(1, self.last + 1):
            self.add_module(f"conv{number}", layers[f"conv{number}"])
            self.add_module(f"bn{number}", FusedBatchNorm2d(layers[f"bn{number}"], relu=True))  # type: ignore[arg-type]
        self.downsample = layers.get("downsample")
        if isinstance(self.downsample, nn.Sequential):
            self.downsample[1] = FusedBatchNorm2d(self.downsample[1], relu=False)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        for number in range(1, self.last + 1):
            x = self.get_submodule(f"conv{number}")(x)
            x = self.get_submodule(f"bn{number}")(x, residual if number == self.last else None)
        return x


def fuse(trunk: nn.Module) -> int:
    """Replace the blocks and the first normalisation of a ResNet, ours or torchvision's, in place.

    Returns:
        The number of blocks replaced; 0 for a network that has none of them, which stays as it is.
    """
    from torchvision.models.resnet import BasicBlock, Bottleneck

    found = [name for name, module in trunk.named_modules() if isinstance(module, BasicBlock | Bottleneck)]
    for name in found:
        trunk.set_submodule(name, FusedBlock(trunk.get_submodule(name)))
    first = dict(trunk.named_children()).get("bn1")
    if found and type(first) is GroupedBatchNorm2d:
        trunk.set_submodule("bn1", FusedBatchNorm2d(first, relu=True))
        trunk.set_submodule("relu", nn.Identity())
    return len(found)
