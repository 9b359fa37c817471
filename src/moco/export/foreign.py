"""Weights that other code has written: the released checkpoints, lightly, solo-learn, torchvision.

Nothing in such a file says which network it holds; names and shapes do. Files are read without
executing any pickled code.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models.resnet import Bottleneck

from moco.channels import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD
from moco.resnet import ARCHITECTURES

SUFFIXES = (".pth", ".pt", ".tar", ".ckpt", ".bin")
_ORIGINS = {
    "encoder_q.": "MoCo",
    "base_encoder.": "MoCo v3",
    "query_backbone.": "lightly",
    "backbone.": "lightly, solo-learn or mmselfsup",
    "": "torchvision",
}
"""Where trunks stand in a state dict, the likeliest first: encoders that learn before those that follow."""


@dataclass(frozen=True)
class Foreign:
    """What another package's file holds.

    Attributes:
        trunk: parameters and buffers under this package's names.
        head: those of the projection head, where it is one of this package's kinds.
        about: what `build_trunk` needs; size, mean and std are the usual ones of such networks,
            because the file does not say them.
        origin: who writes files like this.
    """

    trunk: dict[str, Tensor]
    head: dict[str, Tensor]
    about: dict[str, Any]
    origin: str


def read_foreign(path: Path) -> Foreign:
    """The query encoder's trunk, and where possible head, of another package's file.

    Args:
        path: a file of the released MoCo code (`module.encoder_q.*`) or its CIFAR-10 demo, of
            MoCo v3 (its vision transformers, too), lightly, solo-learn or mmselfsup, or a torchvision
            state dict of a ResNet.

    Raises:
        ValueError: if no such network is found in it, or one this package does not know.
    """
    tensors = named_tensors(path)
    encoders = (
        (origin, _torchvision_names({k.removeprefix(p): v for k, v in tensors.items() if k.startswith(p)}))
        for p, origin in _ORIGINS.items()
    )
    if "base_encoder.cls_token" in tensors:
        return _transformer(path, {k: v for k, v in tensors.items() if k.startswith("base_encoder.")})
    whole = ((o, t) for o, t in encoders if "conv1.weight" in t and "layer1.0.conv2.weight" in t)
    origin, renamed = next(whole, ("", {}))
    if not renamed:
        some = ", ".join(list(tensors)[:3])
        raise ValueError(
            f"{path} holds no residual network that is understood (its tensors begin with {some}); "
            "give a state dict with torchvision's names"
        )
    trunk = {k: v for k, v in renamed.items() if re.match(r"(conv1|bn1|layer\d+)\.", k)}
    about = _architecture(path, trunk)
    if about["stem"] == "small" and any(key.startswith("projector.") for key in tensors):
        about["stem_padding"] = 2  # solo-learn pads the 3x3 stem by two pixels; with one, features are wrong
        origin = "solo-learn"
    head = {k.removeprefix("fc."): v for k, v in renamed.items() if k.startswith("fc.")}
    return Foreign(trunk, head if origin == "MoCo" else {}, about | {"origin": origin}, origin)


def head_kind(head: dict[str, Tensor], features: int) -> tuple[str, int] | None:
    """ "linear" or "mlp" and the length of its output; None if it is neither of this package's heads."""
    shapes = {name: tuple(tensor.shape) for name, tensor in head.items()}
    for kind, first, last in ("linear", "weight", "weight"), ("mlp", "0.weight", "2.weight"):
        biases = {first.replace("weight", "bias"), last.replace("weight", "bias")}
        if shapes.keys() == {first, last} | biases and shapes[first][1] == features:
            if kind == "mlp" and shapes[first] != (features, features):
                continue
            return kind, shapes[last][0]
    return None


def named_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, wherever in it they stand, without the names that DDP and torch.compile add.

    Raises:
        ValueError: if it cannot be read without running code, or holds none.
    """
    inside = {re.sub(r"(^|\.)((module|_orig_mod)\.)+", r"\1", k): v for k, v in _tensors(path).items()}
    if not inside:
        raise ValueError(f"{path} holds no tensors where a state dict has them; save the state dict alone")
    return {re.sub(r"^(model\.)+", "", name): tensor for name, tensor in inside.items()}


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_file(str(path))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read without running code that is in it ({type(error).__name__}); where you "
            "trust it, load it yourself and save its state dict alone with torch.save"
        ) from error
    for name in "state_dict", "model_state_dict", "model":
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no state dict but a {type(content).__name__}")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _torchvision_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keys of a trunk under torchvision's names, whether its children were named or numbered."""
    tensors = {key.removeprefix("net."): value for key, value in tensors.items()}
    numbers = sorted({int(key.split(".")[0]) for key in tensors if key.split(".")[0].isdigit()})
    names = dict(zip(map(str, numbers), ("conv1", "bn1", *(f"layer{n}" for n in range(1, 5))), strict=False))
    renamed = {}
    for key, value in tensors.items():
        first, _, rest = key.partition(".")
        if first.isdigit() and first not in names:
            first = "fc"  # the demo's last layer, numbered like the others
        renamed[f"{names.get(first, first)}.{rest}".replace(".shortcut.", ".downsample.")] = value
    return renamed


def _transformer(path: Path, tensors: dict[str, Tensor]) -> Foreign:
    """The vision transformer of a MoCo v3 checkpoint, whose names are timm's."""
    trunk = {k.removeprefix("base_encoder."): v for k, v in tensors.items()}
    trunk = {k: v for k, v in trunk.items() if not k.startswith("head.")}
    _, channels, patch, _ = trunk["patch_embed.proj.weight"].shape
    _, places, dim = trunk["pos_embed"].shape
    size = patch * round((places - 1) ** 0.5)
    names = {384: "small", 768: "base", 1024: "large"}
    if dim not in names or (size, patch) != (224, 16):
        raise ValueError(
            f"{path} holds a vision transformer of {dim} numbers and patches of {patch} pixels at {size}, "
            f"which is none of v3's ({', '.join(map(str, names))} numbers, patches of 16 pixels at 224)"
        )
    about = {
        "arch": f"timm/vit_{names[dim]}_patch16_224" + (",num_heads=12" if dim < 768 else ""),
        "width": None,
        "stem": "imagenet",
        "channels": channels,
        "size": size,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "origin": "MoCo v3",
    }
    return Foreign(trunk, {}, about, "MoCo v3")


def _architecture(path: Path, trunk: dict[str, Tensor]) -> dict[str, Any]:
    """Which of `ARCHITECTURES` has these shapes, at which width and with which stem."""
    blocks = _count(re.match(r"layer(\d+)\.(\d+)\.", key) for key in trunk)
    first, inner = trunk["layer1.0.conv1.weight"], trunk["layer1.0.conv2.weight"]
    bottleneck = "layer1.0.conv3.weight" in trunk
    stem, channels, kernel = (trunk["conv1.weight"].shape[i] for i in (0, 1, 2))
    groups = first.shape[0] // inner.shape[1] if bottleneck else 1
    alike = [
        (name, width)
        for name, (block, layers, width, own_groups, per_group) in ARCHITECTURES.items()
        if layers == blocks
        and (block is Bottleneck) == bottleneck
        and own_groups == groups
        and first.shape[0] == (stem * per_group // 64 * groups if bottleneck else stem)
    ]
    alike.sort(key=lambda found: found[1] != stem)
    if not alike or kernel not in (3, 7):
        raise ValueError(
            f"{path} holds a residual network of {blocks} blocks with a {kernel}x{kernel} stem of {stem} "
            f"channels, which is none of {', '.join(ARCHITECTURES)} (torchvision's wide_resnet50_2 and "
            "resnext50_32x4d are other networks)"
        )
    name, width = alike[0]
    large = kernel == 7
    return {
        "arch": name,
        "width": None if width == stem else stem,
        "stem": "imagenet" if large else "small",
        "channels": channels,
        "size": 224 if large else 32,
        "mean": (IMAGENET_MEAN if large else CIFAR_MEAN) if channels == 3 else (0.5,) * channels,
        "std": (IMAGENET_STD if large else CIFAR_STD) if channels == 3 else (0.25,) * channels,
    }


def _count(matches: Iterable[re.Match[str] | None]) -> tuple[int, ...]:
    """Blocks of each stage."""
    seen: dict[int, int] = {}
    for match in matches:
        if match:
            stage, block = int(match[1]), int(match[2])
            seen[stage] = max(seen.get(stage, 0), block + 1)
    return tuple(seen[stage] for stage in sorted(seen))
