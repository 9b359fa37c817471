"""Formats without a model zoo behind them: ONNX, torch's own exported programs, detectron2's backbones."""

import contextlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

from moco.export.target import Target, network, pixel_statistics, preparation, quoted, refusal

_DEPTHS: dict[tuple[int, ...], int] = {
    (2, 2, 2, 2): 18,
    (3, 4, 6, 3): 50,
    (3, 4, 23, 3): 101,
    (3, 8, 36, 3): 152,
}


class Onnx(Target):
    """An ONNX graph, for runtimes of any language: images (N, channels, H, W) to features (N, D)."""

    name = "onnx"
    writes_with = ("onnx", "onnxscript")
    reads_with = ("onnxruntime",)
    tolerance = 1e-4

    def lines(self, about: dict[str, Any], folder: Path) -> list[str]:
        return [
            "import onnxruntime",
            f"session = onnxruntime.InferenceSession({quoted(folder / 'backbone.onnx')})",
            'features = session.run(None, {"images": images.numpy()})[0]',
        ]

    def files(self, net: nn.Module, about: dict[str, Any], folder: Path) -> dict[str, bytes]:
        with _quietly():
            program = torch.onnx.export(
                net,
                (_example(about),),
                input_names=["images"],
                output_names=["features"],
                dynamic_shapes=({0: "batch"},),
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        facts = about | {"preparation": preparation(about)}
        program.model.metadata_props["moco"] = json.dumps(facts)
        with tempfile.TemporaryDirectory(dir=folder) as aside:  # of large networks it writes two files
            program.save(Path(aside) / "backbone.onnx", external_data=False)
            return {path.name: path.read_bytes() for path in sorted(Path(aside).iterdir(), reverse=True)}


class Torch(Target):
    """torch's exported program: loads with torch alone, without this package."""

    name = "torch"

    def lines(self, about: dict[str, Any], folder: Path) -> list[str]:
        return [
            "import torch",
            f"model = torch.export.load({quoted(folder / 'backbone.pt2')}).module()",
            "features = model(images)",
        ]

    def files(self, net: nn.Module, about: dict[str, Any], folder: Path) -> dict[str, bytes]:
        batch, buffer = {0: torch.export.Dim("batch")}, io.BytesIO()
        facts = about | {"preparation": preparation(about)}
        with _quietly(), torch.no_grad():
            program = torch.export.export(net, (_example(about),), dynamic_shapes=(batch,))
            torch.export.save(program, buffer, extra_files={"moco.json": json.dumps(facts)})
        return {"backbone.pt2": buffer.getvalue()}


class Detectron2(Target):
    """A backbone for detectron2's detectors, with the settings that go with it.

    Source: the released `convert-pretrain-to-detectron2.py` for the names; MoCo, Section 4.2 and
    Appendix A.1 for the settings (every layer is fine-tuned, BN is synchronised).
    """

    name = "detectron2"
    reads_with = ("detectron2",)

    def lines(self, about: dict[str, Any], folder: Path) -> list[str]:
        net = network(about, self.name)
        if not net.usual_stem:
            raise refusal(self.name, about, "its stem is a 7x7 convolution and a pool")
        if net.layers not in _DEPTHS:
            raise refusal(self.name, about, "it knows 18, 34, 50, 101 and 152 layers")
        if net.block is BasicBlock and net.width != 64:
            raise refusal(self.name, about, "its networks of 18 and 34 layers have 64 channels at first")
        return [
            "from detectron2.checkpoint import DetectionCheckpointer",
            "from detectron2.config import get_cfg",
            "from detectron2.modeling import build_backbone",
            "cfg = get_cfg()",
            f"cfg.merge_from_file({quoted(folder / 'moco.yaml')})",
            "model = build_backbone(cfg).eval()",
            "DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)",
            'features = model(images)["res5"].mean((2, 3))',
        ]

    def files(self, net: nn.Module, about: dict[str, Any], folder: Path) -> dict[str, bytes]:
        shape = network(about, self.name)
        depth = _DEPTHS[shape.layers]
        if shape.block is BasicBlock and depth == 50:
            depth = 34
        content = {
            "model": {detectron2_name(name): tensor for name, tensor in net.state_dict().items()},
            "__author__": "moco",
            "matching_heuristics": True,
            "moco": json.dumps(about | {"preparation": preparation(about)}),
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        mean, std = ([round(value, 4) for value in values] for values in pixel_statistics(about))
        settings = (
            f"INPUT:\n  FORMAT: RGB\n"
            f"MODEL:\n  WEIGHTS: {json.dumps(str((folder / 'moco.pth').resolve()))}\n"
            f"  PIXEL_MEAN: {mean}\n  PIXEL_STD: {std}\n"
            f"  BACKBONE:\n    NAME: build_resnet_backbone\n    FREEZE_AT: 0\n"
            f"  RESNETS:\n    DEPTH: {depth}\n    NORM: SyncBN\n    STRIDE_IN_1X1: false\n"
            f"    NUM_GROUPS: {shape.groups}\n"
            f"    WIDTH_PER_GROUP: {shape.per_group * shape.width // 64}\n"
            f"    STEM_OUT_CHANNELS: {shape.width}\n"
            f"    RES2_OUT_CHANNELS: {shape.width * shape.block.expansion}\n"
            f"    OUT_FEATURES: [res5]\n"
            f"TEST:\n  PRECISE_BN:\n    ENABLED: true\n"
        )
        return {"moco.pth": buffer.getvalue(), "moco.yaml": settings.encode()}


def detectron2_name(name: str) -> str:
    """A tensor's name in detectron2's ResNet.

    Args:
        name: torchvision's, such as layer2.0.downsample.1.weight.
    """
    first, _, rest = name.partition(".")
    if first in ("conv1", "bn1"):
        return f"stem.conv1.{'norm.' if first == 'bn1' else ''}{rest}"
    block, part, rest = rest.split(".", 2)
    stage = f"res{int(first.removeprefix('layer')) + 1}.{block}"
    if part == "downsample":
        number, _, rest = rest.partition(".")
        return f"{stage}.shortcut.{'norm.' if number == '1' else ''}{rest}"
    return f"{stage}.{part}.{rest}" if part.startswith("conv") else f"{stage}.conv{part[2:]}.norm.{rest}"


def _example(about: dict[str, Any]) -> torch.Tensor:
    return torch.zeros(2, about["channels"], about["size"], about["size"])


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Exporters warn of their own insides, which users can do nothing about; onnxscript 0.6 prints them."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
