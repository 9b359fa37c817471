"""The trunk as a file: torchvision's key names, and what a user must know to feed it, inside."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from moco.encoder import trunk
from moco.export.foreign import SUFFIXES, read_foreign


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
    """What a backbone says about itself: architecture, size of the images, mean, standard deviation.

    Args:
        path: what `load_backbone` takes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no network that is understood.
    """
    path = backbone_path(path)
    about = own_metadata(path)
    return about if about is not None else read_foreign(path).about


def load_backbone(path: str | Path) -> nn.Module:
    """A pre-trained trunk in evaluation mode: normalised images (N, channels, H, W) to features (N, D).

    Args:
        path: a finished run folder, its `backbone.safetensors`, or a checkpoint of the released
            code, lightly, solo-learn or torchvision. Mean, std and size are in
            `backbone_metadata(path)`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no network that is understood.
    """
    path = backbone_path(path)
    about = own_metadata(path)
    if about is not None:
        return build_trunk(about, load_file(str(path)))
    found = read_foreign(path)
    return build_trunk(found.about, found.trunk)


def build_trunk(about: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    """The trunk that `about` describes, with these parameters and buffers, in evaluation mode.

    Raises:
        RuntimeError: if they belong to another network.
    """
    net, _ = trunk(about["arch"], width=about["width"], stem=about["stem"], channels=about["channels"])
    if "stem_padding" in about:
        first = net.get_submodule("conv1")
        assert isinstance(first, nn.Conv2d)
        first.padding = (about["stem_padding"],) * 2
    net.load_state_dict(tensors)
    return net.eval()


def backbone_path(path: str | Path) -> Path:
    """The file itself, of a run folder or of a file.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "backbone.safetensors").is_file():
            raise FileNotFoundError(f"{path} holds no backbone.safetensors; a run writes it at its end")
        return path / "backbone.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return path


def own_metadata(path: Path) -> dict[str, Any] | None:
    """What this package wrote into a file, None if it is somebody else's."""
    if path.suffix not in (".safetensors", *SUFFIXES):
        raise ValueError(f"{path} is no file of weights; there are .safetensors, {', '.join(SUFFIXES)}")
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("moco", "{}"))
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from None
    return about if "arch" in about else None
