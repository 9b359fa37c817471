"""The trunk as a file: torchvision's key names, and what a user must know to feed it, inside."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from moco.encoder import trunk


def backbone_bytes(net: nn.Module, about: dict[str, Any]) -> bytes:
    """The content of a safetensors file of a trunk's parameters and buffers.

    Args:
        net: the trunk.
        about: JSON values that `load_backbone` needs (arch, width, stem, channels) and that users
            need (size, mean, std); stored as one entry of the file's metadata, "moco", because
            the order of several is not defined and equal runs must give equal files.
    """
    tensors = {name: tensor.cpu().contiguous() for name, tensor in net.state_dict().items()}
    return save(tensors, metadata={"moco": json.dumps(about)})


def backbone_metadata(path: str | Path) -> dict[str, Any]:
    """What a backbone file says about itself.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no `backbone_bytes`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("moco", "{}"))
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from None
    if "arch" not in about:
        raise ValueError(f"{path} does not say which architecture it holds; was it saved by moco?")
    return about


def load_backbone(path: str | Path) -> nn.Module:
    """A pre-trained trunk in evaluation mode: normalised images (N, channels, H, W) to features (N, D).

    Args:
        path: a `backbone.safetensors`. Its mean, std and size are in `backbone_metadata(path)`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it was not written by this package.
    """
    about = backbone_metadata(path)
    net, _ = trunk(about["arch"], width=about["width"], stem=about["stem"], channels=about["channels"])
    net.load_state_dict(load_file(str(path)))
    return net.eval()
