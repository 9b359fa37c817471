"""What a run can be compared with: networks to take features from, on images with labels."""

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from moco import encoder as encoders
from moco.build import build_encoder
from moco.channels import IMAGENET_MEAN, IMAGENET_STD
from moco.device import choose_device
from moco.encoder import Encoder
from moco.evaluate.features import Features, calibrate, extract
from moco.evaluate.finetune import Classifier
from moco.export.backbone import backbone_metadata, load_backbone
from moco.export.foreign import named_tensors
from moco.images import Data, Portion, check_form, open_like, portions
from moco.norm import GroupedBatchNorm2d
from moco.processor import measuring_precision
from moco.recipe import Recipe, trained_by
from moco.run_folder import chosen_images, read_run
from moco.weights import known_range, open_weights

_CALIBRATION_BATCHES = 4


@dataclass(frozen=True)
class Setting:
    """A run, or weights from elsewhere, and the labelled images its features are measured on.

    Attributes:
        out: the run folder, or the file.
        values: its recipe.
        spec: what the images were called.
        data: the images.
        train, test: what classes are learnt from, and what is tested on.
        classes: how many there are.
        channels: of the images.
        device: where networks run.
        lost: names of labelled images that cannot be read and were left out.
    """

    out: Path
    values: Recipe
    spec: str
    data: Data
    train: Portion
    test: Portion
    classes: int
    channels: int
    device: torch.device
    lost: tuple[str, ...] = ()


def open_setting(
    out: str | Path, data: str | None = None, *, device: str = "auto", run_only: bool = False
) -> Setting:
    """Read a run, or weights from elsewhere, and labelled images, as the run reads its own.

    Images that cannot be read are left out.

    Args:
        out: the run folder, or a file that `open_weights` takes.
        data: labelled images, as for `pretrain`; None takes the run's own.
        run_only: files are refused.
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        FileNotFoundError: if there is no run or there are no images.
        ValueError: if labels are missing, there is only one class, or the images have other channels.
    """
    out, where = Path(out), choose_device(device)
    if run_only or not out.is_file():
        values, run = read_run(out)
    else:
        weights = open_weights(out)
        values, run = weights.values, {"channels": weights.about["channels"]}
        run |= {"pixels": weights.about.get("pixels")}
    spec, listed = chosen_images(out, run, data)
    images = open_like(spec, values.reading, listed, run)
    for source in (images.train, *(() if images.test is None else (images.test,))):
        if source.labels is None:
            raise ValueError(f"{source.name} has no labels; give class folders or a labels array")
        known = source.labels if source.lost is None else source.labels[~source.lost]
        if missing := int((known < 0).sum()):
            raise ValueError(f"{missing:,} of the {len(source):,} images of {source.name} have no label")
    found = portions(images, values.seed)
    if found is None:
        raise ValueError(f"{spec} has too few images to learn from some and test on others")
    (train, lost), (test, others) = (portion.readable() for portion in found)
    if not len(train.labels) or not len(test.labels):
        raise ValueError(f"{spec} has no image to learn from or none to test on that can be read")
    if len(train.labels.unique()) < 2:
        raise ValueError(f"{spec} has images of one class only; there is nothing to tell apart")
    if unknown := set(test.labels.tolist()) - set(train.labels.tolist()):
        raise ValueError(f"class {min(unknown)} of the test images of {spec} has no training image")
    classes = int(train.labels.max()) + 1
    lost += others
    return Setting(out, values, spec, images, train, test, classes, run["channels"], where, tuple(lost))


@dataclass(frozen=True)
class Start:
    """A network to take features from, and to begin training from.

    Attributes:
        name: what to call it.
        encoder: in evaluation mode.
        values: say how its images are prepared.
        trained: its weights have seen images.
        head: its head's output means something.
    """

    name: str
    encoder: Encoder
    values: Recipe
    trained: bool
    head: bool = True

    def features(self, portion: Portion, device: torch.device) -> Features:
        """Trunk features and head output of unaugmented images."""
        return extract(self.encoder, portion.plain(self.values, device, strict=True).batches())

    def classifier(self, setting: Setting) -> Classifier:
        """A copy of the trunk with a fresh classifier, ready to be trained.

        Its batch normalisation takes the whole batch: groups belong to the pretext task.
        """
        trunk = copy.deepcopy(self.encoder.trunk).requires_grad_(True)
        for module in trunk.modules():
            if isinstance(module, GroupedBatchNorm2d):
                module.group_size = None
        length = feature_length(trunk, setting.channels, self.values)
        net = Classifier(trunk, length, setting.classes, seed=self.values.seed)
        return net.to(setting.device).to(memory_format=torch.channels_last)


def feature_length(trunk: nn.Module, channels: int, values: Recipe) -> int:
    """Length D of a trunk's features."""
    size = values.views.eval_size or values.views.size
    device = next(trunk.parameters()).device
    with torch.no_grad():
        return trunk.eval()(torch.zeros(1, channels, size, size, device=device)).shape[1]


def trained_start(setting: Setting) -> Start:
    """The run's own query encoder, or the weights of a file."""
    weights = open_weights(setting.out, setting.device)
    name = trained_by(setting.values) if setting.out.is_dir() else setting.out.name
    return Start(name, weights.encoder, setting.values, trained=True, head=weights.has_head)


def untrained_start(setting: Setting) -> Start:
    """The network as the run began with it; its batch normalisation has seen a few batches."""
    net = build_encoder(setting.values, setting.channels).to(setting.device)
    net.autocast = measuring_precision(setting.values.precision, setting.device)
    batches = setting.train.plain(setting.values, setting.device).batches()
    calibrate(net, (images for _, images in zip(range(_CALIBRATION_BATCHES), batches, strict=False)))
    return Start("untrained network", net.eval(), setting.values, trained=False)


def other_start(setting: Setting, path: str, *, name: str | None = None) -> Start:
    """Weights from elsewhere: a run folder, a backbone.safetensors, or torchvision/NAME:FILE, timm/NAME:FILE.

    Images are prepared as the file asks: a backbone by its own metadata, a library's network at 224
    pixels with ImageNet's statistics. They are read as the setting's are.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file does not hold that network, cannot be read without running code, or takes
            images of other channels or depth.
    """
    library, _, file = path.partition(":")
    if library.startswith(("torchvision/", "timm/")) and file:
        if not Path(file).is_file():
            raise FileNotFoundError(f"there is no file {file}")
        trunk, _ = encoders.trunk(library, channels=setting.channels)
        _load(trunk, named_tensors(Path(file)), library, file)
        size, mean, std, range = 224, IMAGENET_MEAN, IMAGENET_STD, setting.values.views.range
    else:
        where = Path(path) if Path(path).is_file() else Path(path) / "backbone.safetensors"
        about = backbone_metadata(where)
        trunk = load_backbone(where)
        size, mean, std = about["size"], tuple(about["mean"]), tuple(about["std"])
        range = known_range(about) or setting.values.views.range
        check_form(setting.train.source, about)
    views = dataclasses.replace(setting.values.views, eval_size=size, range=range, mean=mean, std=std)
    autocast = measuring_precision(setting.values.precision, setting.device)
    encoder = Encoder(trunk, nn.Identity(), autocast=autocast).to(setting.device)
    encoder.to(memory_format=torch.channels_last)
    values = dataclasses.replace(setting.values, views=views)
    return Start(name or path, encoder.eval(), values, trained=True, head=False)


def choose_start(setting: Setting, weights: str | None) -> Start:
    """The run's own network, the untrained one, or weights from elsewhere.

    Args:
        setting: the run and the images.
        weights: None, "untrained", or as for `other_start`.
    """
    if weights is None:
        return trained_start(setting)
    return untrained_start(setting) if weights == "untrained" else other_start(setting, weights)


def _load(trunk: nn.Module, state: dict[str, Tensor], library: str, file: str) -> None:
    """Load a whole network's state dict into a trunk, which lacks its classifier."""
    try:
        missing = trunk.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:
        raise ValueError(f"{file} does not hold {library}: {str(error).splitlines()[-1].strip()}") from None
    if missing:
        raise ValueError(f"{file} does not hold {library}: {missing[0]} is missing")
