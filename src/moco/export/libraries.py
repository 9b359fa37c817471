"""Model libraries: torchvision, timm, Hugging Face transformers, and this package itself."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn
from torchvision.models.resnet import Bottleneck

from moco.encoder import library_network
from moco.export.backbone import backbone_bytes
from moco.export.target import Network, Target, network, pixel_statistics, preparation, quoted, refusal


class Safetensors(Target):
    """This package's own file: any network, under torchvision's names where it has them."""

    name = "safetensors"

    def lines(self, about: dict[str, Any], folder: Path) -> list[str]:
        return [
            "import moco",
            f"model = moco.load_backbone({quoted(folder / 'backbone.safetensors')})",
            "features = model(images)",
        ]

    def files(self, net: nn.Module, about: dict[str, Any], folder: Path) -> dict[str, bytes]:
        return {"backbone.safetensors": backbone_bytes(net, about)}


class Torchvision(Target):
    """A state dict for `torchvision.models`; another stem is put in by a line of Python."""

    name = "torchvision"
    reads_with = ("torchvision",)

    def lines(self, about: dict[str, Any], folder: Path) -> list[str]:
        library, own, options = library_network(about["arch"])
        changes: list[str] = []
        if library == "torchvision" and about["channels"] == 3:
            told = "".join(f", {name}={value!r}" for name, value in options.items())
            call, classifier = f"torchvision.models.get_model({quoted(Path(own))}{told})", _classifier(own)
        else:
            net = network(about, self.name)
            _need_usual_width(net, about, self.name)
            call, classifier = _torchvision_call(net), "fc"
            if not net.usual_stem or net.channels != 3:
                changes.append(f"model.conv1 = {net.first_convolution()}")
            if not net.pool:
                changes.append("model.maxpool = torch.nn.Identity()")
        return [
            "import torch, torchvision",
            "from safetensors.torch import load_file",
            f"model = {call}",
            f"model.{classifier} = torch.nn.Identity()",
            *changes,
            f"model.load_state_dict(load_file({quoted(folder / 'torchvision.safetensors')}))",
            "features = model.eval()(images)",
        ]

    def files(self, net: nn.Module, about: dict[str, Any], folder: Path) -> dict[str, bytes]:
        return {"torchvision.safetensors": _bytes(net.state_dict(), about)}


class Timm(Target):
    """A folder that `timm.create_model` opens by name; of other widths, timm's network of given blocks."""

    name = "timm"
    reads_with = ("timm",)

    def lines(self, about: dict[str, Any], folder: Path) -> list[str]:
        if about["arch"].startswith("timm/"):
            return self._by_folder(folder)
        net = network(about, self.name)
        if net.width != 64:
            return self._of_blocks(net, about, folder)
        if net.usual_stem:
            return self._by_folder(folder)
        options = "".join(f", {k}={tuple(v) if isinstance(v, list) else v}" for k, v in _timm(net)[1].items())
        pool = ["model.maxpool = torch.nn.Identity()"] if not net.pool else []
        return [
            "import timm, torch",
            f'model = timm.create_model("{_timm(net)[0]}", num_classes=0{options}).eval()',
            f"model.conv1 = {net.first_convolution()}",
            *pool,
            f"timm.models.load_checkpoint(model, {quoted(folder / 'model.safetensors')})",
            "features = model(images)",
        ]

    def _by_folder(self, folder: Path) -> list[str]:
        return [
            "import timm",
            f"model = timm.create_model({quoted(Path(f'local-dir:{folder}'))}, pretrained=True).eval()",
            "features = model(images)",
        ]

    def _of_blocks(self, net: Network, about: dict[str, Any], folder: Path) -> list[str]:
        if net.width % 8 or net.groups != 1:
            raise refusal(self.name, about, "its widths are multiples of 8, without groups")
        deep = net.block is Bottleneck
        kind, ratio = ("bottle", ", br=0.25") if deep else ("basic", "")
        widths = [net.width * net.block.expansion * 2**n for n in range(len(net.layers))]
        stages = ", ".join(
            f'Block("{kind}", d={blocks}, c={width}, s={1 if width == widths[0] else 2}{ratio})'
            for blocks, width in zip(net.layers, widths, strict=True)
        )
        stem, first = f"{net.kernel}x{net.kernel}", "model.stem.conv1.conv" if net.pool else "model.stem.conv"
        changes = []
        if net.stride != 2:
            changes.append(f"{first}.stride = ({net.stride}, {net.stride})")
        if net.padding != net.kernel // 2:
            changes.append(f"{first}.padding = ({net.padding}, {net.padding})")
        pool = "maxpool" if net.pool else ""
        return [
            "import timm",
            "from timm.models.byobnet import ByobNet, ByoBlockCfg as Block, ByoModelCfg as Blocks",
            f"stages = ({stages})",
            f'blocks = Blocks(stages, stem_type="{stem}", stem_pool="{pool}", stem_chs={net.width})',
            f"model = ByobNet(blocks, num_classes=0, in_chans={net.channels}).eval()",
            *changes,
            f"timm.models.load_checkpoint(model, {quoted(folder / 'model.safetensors')})",
            "features = model(images)",
        ]

    def files(self, net: nn.Module, about: dict[str, Any], folder: Path) -> dict[str, bytes]:
        library, own, options = library_network(about["arch"])
        config: dict[str, Any] = {"pretrained_cfg": _timm_input(about), "moco": about}
        tensors = net.state_dict()
        if library == "timm":
            config |= {"architecture": own, "model_args": options}
        elif (shape := network(about, self.name)).width == 64:
            name, options = _timm(shape)
            config |= {"architecture": name, "model_args": options}
            data = {"fixed_input_size": False, "classifier": "fc"}
            config["pretrained_cfg"] |= data | {"first_conv": "conv1" if about["channels"] == 3 else None}
        else:
            tensors = {timm_block_name(name, shape): tensor for name, tensor in tensors.items()}
        if "architecture" in config:
            config["num_classes"] = 0
            if about["channels"] != 3:
                config["model_args"] |= {"in_chans": about["channels"]}
        return {"model.safetensors": _bytes(tensors, about), "config.json": _json(config)}


def _timm_input(about: dict[str, Any]) -> dict[str, Any]:
    """What timm calls a data configuration: how images, divided by 255, become inputs."""
    prepare, (mean, std) = preparation(about), pixel_statistics(about, 255)
    return {
        "input_size": [about["channels"], about["size"], about["size"]],
        "interpolation": "bilinear",
        "crop_pct": prepare["centre_crop"] / prepare["resize_short_side"],
        "mean": mean,
        "std": std,
        "num_classes": 0,
        "license": about.get("licence", ""),
    }


def timm_block_name(name: str, net: Network) -> str:
    """A tensor's name in timm's network of given blocks.

    Args:
        name: torchvision's, such as layer2.0.downsample.1.weight.
        net: the network.
    """
    first, _, rest = name.partition(".")
    if first in ("conv1", "bn1"):
        return f"stem.{'conv1.' if net.pool else ''}{first[:-1]}.{rest}"
    block, part, rest = rest.split(".", 2)
    stage = f"stages.{int(first.removeprefix('layer')) - 1}.{block}"
    if part == "downsample":
        number, _, rest = rest.partition(".")
        return f"{stage}.shortcut.{('conv', 'bn')[int(number)]}.{rest}"
    deep, place = net.block is Bottleneck, part[-1]
    return f"{stage}.conv{place}_{'1x1' if deep and place != '2' else 'kxk'}.{part[:-1]}.{rest}"


class HuggingFace(Target):
    """A folder that transformers' `AutoModel` opens, with its image processor."""

    name = "huggingface"
    reads_with = ("transformers",)

    def lines(self, about: dict[str, Any], folder: Path) -> list[str]:
        net = network(about, self.name)
        if not net.usual_stem:
            raise refusal(self.name, about, "transformers' ResNet begins with a 7x7 convolution and a pool")
        if net.groups != 1:
            raise refusal(self.name, about, "transformers' ResNet has no groups")
        return [
            "from transformers import AutoModel",
            f"model = AutoModel.from_pretrained({quoted(folder)}).eval()",
            "features = model(images).pooler_output.flatten(1)",
        ]

    def files(self, net: nn.Module, about: dict[str, Any], folder: Path) -> dict[str, bytes]:
        shape = network(about, self.name)
        deep = shape.block is Bottleneck
        config = {
            "model_type": "resnet",
            "architectures": ["ResNetModel"],
            "num_channels": shape.channels,
            "embedding_size": shape.width,
            "hidden_sizes": [shape.width * 2**n * shape.block.expansion for n in range(len(shape.layers))],
            "depths": list(shape.layers),
            "layer_type": "bottleneck" if deep else "basic",
            "hidden_act": "relu",
            "downsample_in_first_stage": False,
            "downsample_in_bottleneck": False,
            "moco": about,
        }
        prepare, (low, high) = preparation(about), about.get("range") or (0, 255)
        processor = {
            "image_processor_type": "BitImageProcessor",
            "do_convert_rgb": about["channels"] == 3,
            "do_resize": True,
            "size": {"shortest_edge": prepare["resize_short_side"]},
            "resample": 2,
            "do_center_crop": True,
            "crop_size": {"height": prepare["centre_crop"], "width": prepare["centre_crop"]},
            "do_rescale": True,
            "rescale_factor": 1 / (high - low),
            "do_normalize": True,
            "image_mean": [value + low / (high - low) for value in prepare["mean"]],
            "image_std": prepare["std"],
        }
        tensors = {huggingface_name(name): tensor for name, tensor in net.state_dict().items()}
        return {
            "model.safetensors": _bytes(tensors, about),
            "config.json": _json(config),
            "preprocessor_config.json": _json(processor),
        }


def huggingface_name(name: str) -> str:
    """A tensor's name in transformers' ResNet.

    Args:
        name: torchvision's, such as layer2.0.downsample.1.weight.
    """
    first, _, rest = name.partition(".")
    if first in ("conv1", "bn1"):
        part = "convolution" if first == "conv1" else "normalization"
        return f"embedder.embedder.{part}.{rest}"
    block, part, rest = rest.split(".", 2)
    stage = f"encoder.stages.{int(first.removeprefix('layer')) - 1}.layers.{block}"
    if part == "downsample":
        number, _, rest = rest.partition(".")
        return f"{stage}.shortcut.{('convolution', 'normalization')[int(number)]}.{rest}"
    kind, number = ("convolution", part[4:]) if part.startswith("conv") else ("normalization", part[2:])
    return f"{stage}.layer.{int(number) - 1}.{kind}.{rest}"


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=1).encode()


def _bytes(tensors: dict[str, Any], about: dict[str, Any]) -> bytes:
    """A safetensors file that says what it holds."""
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    facts = about | {"preparation": preparation(about)}
    return save(whole, metadata={"format": "pt", "moco": json.dumps(facts)})


def _need_usual_width(net: Network, about: dict[str, Any], target: str) -> None:
    if net.width != 64:
        raise refusal(target, about, "its first stage always has 64 channels")


def _torchvision_call(net: Network) -> str:
    """The constructor of a network in torchvision."""
    if net.arch == "resnet10":
        return "torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])"
    if net.groups != 1:
        return f"torchvision.models.resnet50(groups={net.groups}, width_per_group={net.per_group})"
    return f"torchvision.models.{net.arch}()"


def _timm(net: Network) -> tuple[str, dict[str, Any]]:
    """The name and options of a network in timm."""
    if net.arch == "resnet10":
        return "resnet18", {"layers": [1, 1, 1, 1]}
    if net.groups != 1:
        return "resnet50", {"cardinality": net.groups, "base_width": net.per_group}
    return net.arch, {}


def _classifier(name: str) -> str:
    """Where a torchvision network has its last fully connected layer."""
    import torchvision

    net = torchvision.models.get_model(name)
    found = [module for module, kind in net.named_modules() if isinstance(kind, nn.Linear)][-1]
    return found if not found[-1].isdigit() else f"{found.rpartition('.')[0]}[{found.rpartition('.')[2]}]"
