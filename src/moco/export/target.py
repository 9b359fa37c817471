"""A place weights can go: writes files, says which Python loads them, and proves it by loading them."""

import importlib.util
import json
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from moco.files import write_atomically
from moco.resnet import ARCHITECTURES


@dataclass(frozen=True)
class Network:
    """A residual network as other libraries name its parts.

    Attributes:
        arch: its name here.
        block, layers: residual block and blocks per stage.
        width: channels of the first stage; 64 is every other library's.
        groups, per_group: of ResNeXt.
        kernel, stride, padding: of the first convolution.
        pool: whether a max pool follows it.
        channels: of the images.
    """

    arch: str
    block: type[BasicBlock] | type[Bottleneck]
    layers: tuple[int, ...]
    width: int
    groups: int
    per_group: int
    kernel: int
    stride: int
    padding: int
    pool: bool
    channels: int

    @property
    def usual_stem(self) -> bool:
        """Whether it begins with a 7x7 stride-2 convolution and a max pool."""
        return (self.kernel, self.stride, self.padding, self.pool) == (7, 2, 3, True)

    def first_convolution(self) -> str:
        """The first convolution in Python."""
        shape = f"{self.channels}, {self.width}, {self.kernel}, {self.stride}, {self.padding}"
        return f"torch.nn.Conv2d({shape}, bias=False)"


def network(about: dict[str, Any], target: str) -> Network:
    """The residual network that `about` describes.

    Raises:
        ValueError: if it is another library's network.
    """
    name = about["arch"].removeprefix("torchvision/")
    if name not in ARCHITECTURES:
        raise refusal(target, about, "it takes residual networks; a library's own goes back to that library")
    block, layers, own_width, groups, per_group = ARCHITECTURES[name]
    kernel, stride, padding = {"imagenet": (7, 2, 3), "small": (3, 1, 1), "small2": (3, 2, 1)}[about["stem"]]
    return Network(
        arch=name,
        block=block,
        layers=layers,
        width=about["width"] or own_width,
        groups=groups,
        per_group=per_group,
        kernel=kernel,
        stride=stride,
        padding=about.get("stem_padding", padding),
        pool=about["stem"] == "imagenet",
        channels=about["channels"],
    )


def refusal(target: str, about: dict[str, Any], reason: str) -> ValueError:
    """The error for a network that a library has no way to express."""
    width = f" of width {about['width']}" if about["width"] is not None else ""
    return ValueError(
        f"{target} cannot express {about['arch']}{width} with the {about['stem']} stem: {reason}; "
        "--to timm takes most widths, onnx, torch and safetensors every network"
    )


class Target(ABC):
    """A library or format.

    Attributes:
        name: what users type.
        writes_with, reads_with: packages needed to write the files, and to load them again.
        tolerance: largest difference of features that rounding explains, as a share of the largest
            feature where that is above 1.
    """

    name: str
    writes_with: tuple[str, ...] = ()
    reads_with: tuple[str, ...] = ()
    tolerance = 1e-5

    @abstractmethod
    def lines(self, about: dict[str, Any], folder: Path) -> list[str]:
        """Python that loads the files and turns `images` into `features`.

        Raises:
            ValueError: if the library has no such network.
        """

    @abstractmethod
    def files(self, net: nn.Module, about: dict[str, Any], folder: Path) -> dict[str, bytes]:
        """The content of each file by its name in the folder, which is there; weights first."""


class Exported(NamedTuple):
    """What an export left.

    Attributes:
        target: the library or format.
        folder: where the files are.
        lines: Python that loads them and turns `images` into `features`.
        difference: largest difference between any feature loaded that way and ours; None if it
            was not loaded.
        why_not: why it was not loaded.
        failed: whether that is a fault, not a limit of the library.
    """

    target: str
    folder: str
    lines: list[str]
    difference: float | None
    why_not: str
    failed: bool = False


def export_backbone(net: nn.Module, about: dict[str, Any], target: Target, folder: Path) -> Exported:
    """Write a trunk for another library, load it there with the very lines that are shown, and compare.

    Args:
        net: the trunk, in evaluation mode, on the CPU.
        about: what `backbone_metadata` says of it.
        target: one of `moco.export.targets.TARGETS`.
        folder: where to write; made if needed, files of the same names are replaced.

    Raises:
        ValueError: if the library has no such network; nothing is written then.
        ModuleNotFoundError: if a package is needed to write; nothing is written then.
        RuntimeError: if the features differ by more than rounding.
        OSError: if a file cannot be written; there is none that is not whole.
    """
    lines = target.lines(about, folder)
    if absent := missing(target.writes_with):
        raise ModuleNotFoundError(
            f"--to {target.name} needs {', '.join(absent)}: pip install {' '.join(absent)}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in target.files(net, about, folder).items():
        write_atomically(folder / name, content)
    if absent := missing(target.reads_with):
        return Exported(target.name, str(folder), lines, None, f"{', '.join(absent)} is not installed")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, about["channels"], about["size"], about["size"], generator=generator)
    names: dict[str, Any] = {"images": images}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch.export.load, up to 2.11
        exec("\n".join(lines), names)
        features = net(images)
        difference = float((torch.as_tensor(names["features"]) - features).abs().max())
    bound = target.tolerance * max(1.0, float(features.abs().max()))
    if not difference <= bound:
        raise RuntimeError(
            f"features loaded from {folder} differ by {difference:.3g}, more than the {bound:.2g} that "
            "rounding explains: the files hold another network"
        )
    return Exported(target.name, str(folder), lines, difference, "")


def missing(packages: tuple[str, ...]) -> list[str]:
    """Those that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def quoted(path: Path) -> str:
    """A path as a Python string."""
    return json.dumps(str(path), ensure_ascii=False)


def pixel_statistics(about: dict[str, Any], unit: float = 1) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of pixels that are divided by `unit` and by nothing else."""
    low, high = about.get("range") or (0, 255)
    scale = (high - low) / unit
    return [low / unit + scale * value for value in about["mean"]], [scale * value for value in about["std"]]


def preparation(about: dict[str, Any]) -> dict[str, Any]:
    """How images become inputs, in values."""
    scale = "in [0, 1]"
    if about.get("range"):
        scale = f"scaled so that {about['range'][0]:g} to {about['range'][1]:g} becomes 0 to 1"
    size = about["size"]
    whole = about.get("image_size") == [size, size]  # of the evaluation size already, as of CIFAR-10
    return {
        "pixels": scale + (", RGB" if about["channels"] == 3 else ""),
        "resize_short_side": size if whole else round(size * 8 / 7),
        "centre_crop": size,
        "mean": list(about["mean"]),
        "std": list(about["std"]),
    }
