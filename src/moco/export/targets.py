"""Every place weights can go, by name."""

from moco.export.formats import Detectron2, Onnx, Torch
from moco.export.libraries import HuggingFace, Safetensors, Timm, Torchvision
from moco.export.target import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (Torchvision(), Timm(), HuggingFace(), Onnx(), Torch(), Safetensors(), Detectron2())
}


def target(name: str) -> Target:
    """The target of that name.

    Raises:
        ValueError: if there is none.
    """
    if name not in TARGETS:
        raise ValueError(f"--to must be one of {', '.join(TARGETS)}, got {name!r}")
    return TARGETS[name]
