"""Encoders: a trunk that gives features and a head that gives unit-length vectors to compare."""

import ast
import contextlib
import hashlib
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from moco.norm import GroupedBatchNorm1d, group_batch_norm
from moco.resnet import ARCHITECTURES, Stem, resnet

Head = Literal["linear", "mlp"]
Norm = Literal["off", "hidden", "all"]


class Encoder(nn.Module):
    """f: images to unit-length vectors; queries and keys are its outputs.

    Args:
        trunk: images (N, channels, H, W) to features (N, D); it is what is kept after pre-training.
        head: features to vectors (N, C); it is dropped after pre-training.
        predictor: of a query encoder, vectors (N, C) to others of the same length; a key encoder has none.
        autocast: compute the trunk and heads in this precision; None computes in that of the weights.

    Source: MoCo, Section 3.1; v2's head in "Improved Baselines with Momentum Contrastive Learning"; v3's
    prediction head in "An Empirical Study of Training Self-Supervised Vision Transformers", Section 3.
    """

    def __init__(
        self,
        trunk: nn.Module,
        head: nn.Module,
        predictor: nn.Module | None = None,
        *,
        autocast: torch.dtype | None = None,
    ):
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.predictor = predictor
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
            if self.predictor is not None:
                vectors = self.predictor(vectors)
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


def head(
    kind: Head,
    features: int,
    dim: int = 128,
    *,
    hidden: int | None = None,
    layers: int = 2,
    norm: Norm = "off",
    bn_group: int | None = None,
) -> nn.Module:
    """A projection head: "linear" is v1's fully connected layer, "mlp" v2's with one hidden layer, or v3's.

    Args:
        kind: see above; what follows is of "mlp" only.
        features: length of its input.
        dim: C, length of its output.
        hidden: length of what is between; None is that of the input.
        layers: fully connected ones.
        norm: batch normalisation after hidden layers, or after the last one too, there without scale and
            shift. With any, as in v3, no layer has a bias.
        bn_group: images per batch-normalisation group.
    """
    if kind == "linear":
        return nn.Linear(features, dim)
    lengths = [features, *[hidden or features] * (layers - 1), dim]
    modules: list[nn.Module] = []
    for number in range(layers):
        last = number == layers - 1
        modules.append(nn.Linear(lengths[number], lengths[number + 1], bias=norm == "off"))
        if norm == "all" or (norm == "hidden" and not last):
            modules.append(GroupedBatchNorm1d(lengths[number + 1], bn_group, affine=not last))
        if not last:
            modules.append(nn.ReLU())
    return nn.Sequential(*modules)


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
            image classifier of those libraries, taken without its last layer. What the library shall
            be told besides follows: "timm/vit_small_patch16_224,img_size=32,patch_size=4".
        width, stem: of our residual networks only.
        channels: input channels.
        bn_group: images per batch-normalisation group.

    Raises:
        ValueError: if the name is unknown, or width or stem is set for a library's network, or it does
            not take what it is told.
        ModuleNotFoundError: if timm is asked for and not installed.
    """
    library, model, options = library_network(name)
    if not library:
        own = resnet(name, width=width, stem=stem, channels=channels, bn_group=bn_group)
        return own, own.features
    if width is not None or stem != "imagenet":
        raise ValueError(f"width and stem belong to {', '.join(ARCHITECTURES)}, not to {name!r}")
    if library == "timm":
        import timm

        if not timm.is_model(model):
            raise ValueError(f"timm has no model {model!r}; timm.list_models() names them")
        net = _made(name, timm.create_model, model, num_classes=0, in_chans=channels, **options)
        features = int(getattr(net, "head_hidden_size", None) or net.num_features)
        return group_batch_norm(net, bn_group), features
    if library == "torchvision":
        import torchvision

        if model not in torchvision.models.list_models(torchvision.models):
            raise ValueError(f"torchvision has no classifier {model!r}")
        net = _made(name, torchvision.models.get_model, model, **options)
        if getattr(net, "aux_logits", False):
            net.aux_logits = False
        features = _drop_classifier(net)
        _set_channels(net, channels)
        return group_batch_norm(net, bn_group), features
    raise ValueError(f"unknown library in {name!r}; write torchvision/NAME or timm/NAME")


def library_network(name: str) -> tuple[str, str, dict[str, Any]]:
    """Library, network and what it is told, of names such as "timm/vit_small_patch16_224,num_heads=12".

    The library is "" for a network of ours.

    Raises:
        ValueError: if what follows the name is no list of name=value.
    """
    library, _, rest = name.rpartition("/")
    network, *words = rest.split(",")
    options = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (library and key.isidentifier() and equals):
            raise ValueError(
                f"what follows a library's network must be ,name=value, got {word!r} in {name!r}"
            )
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value  # a word
    return library, network, options


def _made(name: str, make: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What a library makes of these arguments, or an error that says the network's name."""
    try:
        return make(*args, **options)
    except (TypeError, RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(f"{name} cannot be made: {error}") from error


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
