"""Where fine-tuning starts: a pre-training run, supervised weights, or nothing."""

from pathlib import Path
from typing import Any

import torch

from moco import recipe_file
from moco.encoder import trunk
from moco.export.backbone import backbone_metadata, load_backbone, own_metadata
from moco.export.foreign import named_tensors
from moco.export.target import pixel_statistics
from moco.recipe import mechanism
from moco.transfer.loader import Pixels
from moco.transfer_build import IMAGENET, TransferStart
from moco.transfer_recipe import Trunk
from moco.words import some


def absolute(spec: str) -> str:
    """What stands after --init, with its path made absolute, so that a run folder can be read anywhere."""
    kind, colon, where = spec.partition(":")
    if spec == "random":
        return spec
    if colon and kind in ("random", "supervised"):
        return f"{kind}:{Path(where).expanduser().resolve()}"
    return str(Path(spec).expanduser().resolve())


def open_start(spec: str, values: Trunk) -> TransferStart:
    """A start by what stands after --init.

    Args:
        spec: "random" (of the recipe's architecture), "random:RUN" (of a run's architecture),
            "supervised:FILE" (torchvision's key names, .pth or .safetensors; a backbone.safetensors
            brings its own architecture and statistics), or RUN: a finished pre-training run, any
            backbone.safetensors, or a checkpoint of the released code, lightly or solo-learn, whose row
            is what made it.
        values: the recipe's architecture, for what does not bring its own.

    Raises:
        FileNotFoundError: if there is no such file or run.
        ValueError: if it does not hold weights of that architecture, or not for three channels of 8 bits.
    """
    kind, _, where = spec.partition(":")
    if spec == "random":
        return TransferStart("random", spec, values, IMAGENET)
    if kind == "random":
        about = backbone_metadata(_backbone(where))
        return TransferStart("random", spec, _trunk(about, values), _pixels(about))
    if kind == "supervised":
        return _supervised(spec, Path(where), values)
    path = _backbone(spec)
    about = backbone_metadata(path)
    _require_rgb(about, path)
    own = _trunk(about, values)
    state = load_backbone(path).state_dict()
    return TransferStart(_row(path, about), spec, own, _pixels(about), _checked(state, own, path))


def _backbone(where: str) -> Path:
    path = Path(where)
    if path.is_dir():
        path = path / "backbone.safetensors"
        if not path.is_file():
            raise FileNotFoundError(f"{where} is no finished run: there is no {path}")
    return path


def _trunk(about: dict[str, Any], values: Trunk) -> Trunk:
    if "stem_padding" in about:
        raise ValueError(
            f"its first convolution pads by {about['stem_padding']}, which is of use for small images only; "
            "moco transfer takes backbones with this package's stems"
        )
    return Trunk(arch=about["arch"], width=about["width"], stem=about["stem"], norm=values.norm)


def _pixels(about: dict[str, Any]) -> Pixels:
    if about.get("pixels") not in (None, "uint8"):
        raise ValueError(
            f"it was trained on {about['pixels']} pixels; detection and segmentation read 8 bits, which "
            "would mean something else"
        )
    mean, std = pixel_statistics(about, 255)
    return Pixels(tuple(mean), tuple(std))


def _require_rgb(about: dict[str, Any], path: Path) -> None:
    if about["channels"] != 3:
        raise ValueError(
            f"{path} takes {some(about['channels'], 'channel')}; detection and segmentation read images as "
            "RGB, so the trunk must take 3"
        )


def _maker(about: dict[str, Any]) -> str:
    """What made a backbone, as it says: a mechanism, or the package it came from; "" if it does not."""
    return about.get("mechanism", about.get("origin", ""))


def _row(path: Path, about: dict[str, Any]) -> str:
    """The row of a backbone; of files that do not say what made them, what lies beside them does."""
    if made := _maker(about):
        return made
    if (path.parent / "supervised.json").is_file():
        return "supervised"
    if (file := path.parent / "recipe.toml").is_file():
        return mechanism(recipe_file.read(file)[0])
    return "MoCo"


def _supervised(spec: str, path: Path, values: Trunk) -> TransferStart:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; --init supervised:FILE takes torchvision's weights")
    about, pixels = own_metadata(path), IMAGENET
    if about is not None:
        if (made := _maker(about)) not in ("supervised", "torchvision", ""):
            raise ValueError(f"{path} says that it was made by {made}; start from it with --init {path}")
        _require_rgb(about, path)
        values, pixels = _trunk(about, values), _pixels(about)
    state = {name: tensor for name, tensor in named_tensors(path).items() if not name.startswith("fc.")}
    return TransferStart("supervised", spec, values, pixels, _checked(state, values, path))


def _checked(state: dict[str, torch.Tensor], values: Trunk, path: Path) -> dict[str, torch.Tensor]:
    """The state, once it is sure that it fits."""
    net, _ = trunk(values.arch, width=values.width, stem=values.stem)
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise ValueError(
            f"{path} does not hold the trunk of {values.arch}: {first} "
            "Name its architecture with --trunk.arch, and width or stem where they are not the usual ones"
        ) from None
    return state
