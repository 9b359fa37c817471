"""Encoders: a trunk that gives features and a head that gives unit-length vectors to compare."""

import contextlib
import hashlib
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from moco.norm import group_batch_norm
from moco.resnet import ARCHITECTURES, Stem, resnet

Head = Literal["linear", "mlp"]


class Encoder(nn.Module):
    """f: images to unit-length vectors; queries and keys are its outputs.

    Args:
        trunk: images (N, channels, H, W) to features (N, D); it is what is kept after pre-training.
        head: features to vectors (N, C); it is dropped after pre-training.
        autocast: compute the trunk and head in this precision; None computes in that of the weights.

    Source: MoCo, Section 3.1; v2's head in "Improved Baselines with Momentum Contrastive Learning".
    """

    def __init__(self, trunk: nn.Module, head: nn.Module, *, autocast: torch.dtype | None = None):
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.autocast = autocast
        for module in trunk.modules():
            if type(module) is nn.Conv2d and module.stride[-1] > 1 and module.kernel_size[-1] > 1:
                module.__class__ = _StridedConv2d

    def forward(self, images: Float[Tensor, "N channels H W"]) -> Float[Tensor, "N C"]:
        return self.project(self.features(images))

    def features(self, images: Float[Tensor, "N channels H W"]) -> Float[Tensor, "N D"]:
        """The trunk's pooled features, before the head."""
        with self._precision(images):
            return self.trunk(images)

    def project(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        """Unit-length vectors of features, in at least 32-bit floating point."""
        with self._precision(features):
            vectors = self.head(features)
        if vectors.dtype in (torch.bfloat16, torch.float16):
            vectors = vectors.float()
        return F.normalize(vectors, dim=1)

    def _precision(self, x: Tensor) -> contextlib.AbstractContextManager:
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(x.device.type, self.autocast)


def digest(net: nn.Module) -> str:
    """Sixteen hexadecimal digits that tell a network's parameters from others.

    Statistics of batch normalisation, which may be measured anew, are left out.
    """
    content = hashlib.sha256()
    for name, tensor in net.named_parameters():
        content.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()[:16]


class _StridedConv2d(nn.Conv2d):
    """A convolution that leaves bfloat16 on CPUs where its images are narrower than its stride.

    There oneDNN (3.13, with torch 2.15) takes memory beyond the image into the gradient of its weights:
    numbers that differ from step to step, up to infinity.
    """

    def forward(self, input: Tensor) -> Tensor:
        narrow = input.device.type == "cpu" and input.shape[-1] < self.stride[-1]
        if not (narrow and torch.is_autocast_enabled("cpu")):
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float())


def head(kind: Head, features: int, dim: int = 128) -> nn.Module:
    """A projection head: "linear" is v1's fully connected layer, "mlp" v2's with one hidden layer."""
    if kind == "linear":
        return nn.Linear(features, dim)
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, dim))


def trunk(
    name: str,
    *,
    width: int | None = None,
    stem: Stem = "imagenet",
    channels: int = 3,
    bn_group: int | None = None,
) -> tuple[nn.Module, int]:
    """A trunk by name and the length D of its features.

    Args:
        name: one of `moco.resnet.ARCHITECTURES`, or "torchvision/NAME" or "timm/NAME" for any
            image classifier of those libraries, taken without its last layer.
        width, stem: of our residual networks only.
        channels: input channels.
        bn_group: images per batch-normalisation group.

    Raises:
        ValueError: if the name is unknown, or width or stem is set for a library's network.
        ModuleNotFoundError: if timm is asked for and not installed.
    """
    library, _, model = name.rpartition("/")
    if not library:
        own = resnet(name, width=width, stem=stem, channels=channels, bn_group=bn_group)
        return own, own.features
    if width is not None or stem != "imagenet":
        raise ValueError(f"width and stem belong to {', '.join(ARCHITECTURES)}, not to {name!r}")
    if library == "timm":
        import timm

        if not timm.is_model(model):
            raise ValueError(f"timm has no model {model!r}; timm.list_models() names them")
        net = timm.create_model(model, num_classes=0, in_chans=channels)
        features = int(getattr(net, "head_hidden_size", None) or net.num_features)  # type: ignore[arg-type]
        return group_batch_norm(net, bn_group), features
    if library == "torchvision":
        import torchvision

        if model not in torchvision.models.list_models(torchvision.models):
            raise ValueError(f"torchvision has no classifier {model!r}")
        net = torchvision.models.get_model(model)
        if getattr(net, "aux_logits", False):
            net.aux_logits = False
        features = _drop_classifier(net)
        _set_channels(net, channels)
        return group_batch_norm(net, bn_group), features
    raise ValueError(f"unknown library in {name!r}; write torchvision/NAME or timm/NAME")


def _drop_classifier(net: nn.Module) -> int:
    """Replace the last fully connected layer by nothing and return the length of its input."""
    linear = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise ValueError(f"{type(net).__name__} has no fully connected layer to take away")
    name, last = linear[-1]
    net.set_submodule(name, nn.Identity())
    return last.in_features


def _set_channels(net: nn.Module, channels: int) -> None:
    """Give the first convolution another number of input channels, freshly initialised."""
    name, first = next((n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d))
    if first.in_channels != channels:
        options = {
            option: getattr(first, option)
            for option in ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        }
        new = nn.Conv2d(channels, first.out_channels, bias=first.bias is not None, **options)
        net.set_submodule(name, new)


@torch.no_grad()
def inflate_stem(weights: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Weights of a network for images of other channels, from those of the same network for RGB.

    The first convolution is averaged over the channels it had and spread over those it gets, so an
    image of equal channels gives the features that an RGB image of equal channels gave.

    Args:
        weights: state dict of the network for RGB.
        net: the network for the other number of channels.

    Raises:
        ValueError: if the networks differ in more than the channels of their first convolution.
    """
    name, first = next((n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d))
    key = f"{name}.weight"
    if key not in weights or weights[key].shape[0] != first.out_channels:
        raise ValueError(f"the weights must be those of the same network, got none for its {key}")
    old, channels = weights[key], first.in_channels
    mean = old.mean(1, keepdim=True) * (old.shape[1] / channels)
    return weights | {key: mean.expand(-1, channels, -1, -1).clone()}
