"""From the values of a transfer recipe to its examples, network, batches and measurement."""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from moco import chance
from moco.channels import IMAGENET_MEAN, IMAGENET_STD
from moco.data.decode import decode
from moco.data.form import Form
from moco.data.reading import Reading
from moco.encoder import trunk
from moco.training.schedule import linear_scaling
from moco.transfer import cityscapes, coco, voc
from moco.transfer.densepose import SurfaceBranch
from moco.transfer.detector import Detector, c4, dilated_c5, fpn
from moco.transfer.example import IGNORED_PIXEL, Examples, has_keypoints, has_objects, has_surfaces
from moco.transfer.keypoints import KeypointBranch
from moco.transfer.loader import Loader, Pixels, detection_loader, segmentation_loader
from moco.transfer.masks import MaskBranch
from moco.transfer.norm import parameter_groups, set_norm
from moco.transfer.order import Order, repeat_factors
from moco.transfer.proposals import Counts
from moco.transfer.regions import Branch, Pooler
from moco.transfer.segmentation import Segmenter
from moco.transfer.surface import Symmetry
from moco.transfer.transforms import Sizes, Wanted, label_image
from moco.transfer.trunks import Stages, require_residual
from moco.transfer_recipe import Images, TransferRecipe, Trunk
from moco.world import World

IMAGENET = Pixels(IMAGENET_MEAN, IMAGENET_STD)
REFERENCE_BATCH = 16


@dataclass(frozen=True)
class TransferStart:
    """Where fine-tuning starts from.

    Attributes:
        row: of the paper's tables: "random", "supervised", "MoCo", or another mechanism.
        origin: what was asked for.
        trunk: the architecture.
        pixels: the normalisation the weights expect.
        state: of the trunk; None draws it.
    """

    row: str
    origin: str
    trunk: Trunk
    pixels: Pixels
    state: dict[str, torch.Tensor] | None = None


@dataclass(frozen=True)
class Sets:
    """What is trained on, and what is measured on."""

    train: Examples
    test: Examples

    def fingerprint(self) -> str:
        """A digest of both, by which changed data is known."""
        return f"{self.train.fingerprint()}-{self.test.fingerprint()}"


def open_sets(values: TransferRecipe, root: str | Path) -> Sets:
    """The examples of a recipe's splits; images a detector cannot learn from are left out of training.

    Raises:
        FileNotFoundError: naming the file that is wanted.
        ValueError: if an annotation is wrong, or no image is left.
    """
    train, test = _open(values, root, values.train), _open(values, root, (values.test,))
    if values.layout == "voc-segmentation":  # a mask that cannot be measured on is told of before training
        _require_classes(test)
    if train.classes != test.classes:
        raise ValueError(f"{train.name} and {test.name} do not have the same classes")
    if values.layout == "keypoints":
        train = train.only(has_keypoints, "has a labelled keypoint")
    elif values.layout == "densepose":
        train = train.only(has_surfaces, "has DensePose points")
    elif values.heads.model != "fcn":
        train = train.only(has_objects, "shows an object that is no crowd")
    return Sets(train, test)


def _require_classes(test: Examples) -> None:
    """Refuse masks that cannot be measured on, such as those of 0 and 255, where every object is void."""
    found = {number for example in test.examples for number in label_image(example, test).unique().tolist()}
    if len(found - {IGNORED_PIXEL}) < 2:
        raise ValueError(
            f"the masks of {test.name} hold {' and '.join(map(str, sorted(found)))} only; a pixel holds the "
            f"number of its class, from 0, and {IGNORED_PIXEL} counts nowhere"
        )


def _open(values: TransferRecipe, root: str | Path, splits: tuple[str, ...]) -> Examples:
    split = splits[0]
    if values.layout == "voc":
        return voc.detection(root, splits)
    if values.layout == "voc-segmentation":
        return voc.segmentation(root, split)
    if values.layout == "cityscapes":
        return cityscapes.instances(root, split)
    if values.layout == "cityscapes-segmentation":
        return cityscapes.semantic(root, split)
    if values.layout == "lvis":
        return coco.lvis(root, split, masks=values.heads.masks)
    kinds = {"coco": "instances", "keypoints": "person_keypoints", "densepose": "densepose_coco_2014"}
    sets = (coco.coco(root, one, kind=kinds[values.layout], masks=values.heads.masks) for one in splits)
    return functools.reduce(Examples.join, sets)


def scaled(images: Images) -> Images:
    """The sizes with their common factor applied."""
    factor = images.factor

    def size(pixels: int) -> int:
        return max(1, round(pixels * factor))

    return replace(
        images,
        short=tuple(size(short) for short in images.short),
        longest=size(images.longest),
        test_short=size(images.test_short),
        test_longest=size(images.test_longest),
        crop=size(images.crop),
        factor=1.0,
    )


def check_trunk(values: Trunk) -> None:
    """Refuse an architecture that no task can be built on, before any work.

    Raises:
        ValueError: if it is not a residual network of four stages.
    """
    with torch.device("meta"):
        require_residual(trunk(values.arch, width=values.width, stem=values.stem)[0])


def build_model(
    values: TransferRecipe, start: TransferStart, examples: Examples, world: World, seed: int
) -> Detector | Segmenter:
    """The network of a recipe on a start; what is new is drawn from the seed.

    Raises:
        ValueError: if the start's trunk does not suit the task.
    """
    state = torch.get_rng_state()
    torch.manual_seed(chance.generator(seed, "transfer weights").initial_seed())
    try:
        net, _ = trunk(start.trunk.arch, width=start.trunk.width, stem=start.trunk.stem)
        if start.state is not None:
            net.load_state_dict(start.state)
        set_norm(net, values.trunk.norm, world)
        if values.heads.model == "fcn":
            return Segmenter(net, len(examples.classes), world, width=values.heads.channels)
        return _detector(values, net, examples, world)
    finally:
        torch.set_rng_state(state)


def _detector(values: TransferRecipe, net: nn.Module, examples: Examples, world: World) -> Detector:
    heads, factor = values.heads, values.images.factor
    anchors = [side * factor for side in heads.anchors]
    classes = len(examples.classes)
    options: dict[str, Any] = {
        "counts": Counts(heads.train_before, heads.train_after, heads.test_before, heads.test_after),
        "regions": heads.regions,
        "beta": heads.beta,
        "threshold": heads.threshold,
        "most": heads.most,
    }
    if heads.model == "dilated-c5":
        return dilated_c5(
            net, classes, world, sizes=[anchors], width=2 * heads.channels, hidden=heads.hidden, **options
        )
    branches: dict[str, Branch] = {}
    if heads.model == "c4":
        if heads.masks:
            branches["mask"] = MaskBranch(Stages(net).channels[-1], classes, width=heads.branch or 256)
        return c4(net, classes, world, sizes=[anchors], branches=branches, **options)
    model = fpn(
        net, classes, world, sizes=[[side] for side in anchors], channels=heads.channels,
        hidden=heads.hidden, canonical=224 * factor, **options,
    )  # fmt: skip
    strides = model.backbone.strides[:4]
    if heads.masks:
        pooler = Pooler(14, strides, 224 * factor)
        branches["mask"] = MaskBranch(heads.channels, classes, pooler, width=heads.branch or 256)
    if values.layout == "keypoints":
        pooler = Pooler(14, strides, 224 * factor)
        width = heads.branch or 512
        branches["keypoint"] = KeypointBranch(heads.channels, examples.joints, pooler, width=width)
    if values.layout == "densepose":
        width = heads.branch or 512
        branches["surface"] = SurfaceBranch(heads.channels, strides, width=width)
    model.regions.branches.update(branches)
    return model


def read_image(path: Path) -> UInt8[Tensor, "3 H W"]:
    """An image file as RGB of 8 bits, upright.

    Raises:
        RuntimeError: if it is no image, or broken.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RuntimeError(f"cannot read {path}: {error}") from error
    return decode(content, str(path), Form(3), Reading(channels=3, bits=8))


def build_loader(
    values: TransferRecipe,
    examples: Examples,
    pixels: Pixels,
    *,
    divisor: int,
    seed: int,
    world: World,
    device: torch.device,
    workers: int = 2,
    purpose: str = "transfer order",
) -> Loader:
    """Training batches of a recipe.

    Raises:
        ValueError: if there are fewer images than a batch takes.
    """
    repeats = repeat_factors(examples, values.repeat_below) if values.repeat_below else None
    wide = [example.width > example.height for example in examples.examples]
    order = Order(wide, values.batch, seed, repeats=repeats, purpose=purpose)
    images = scaled(values.images)
    options: dict[str, Any] = {"seed": seed, "world": world, "device": device, "workers": workers}
    if values.heads.model == "fcn":
        return segmentation_loader(
            examples, order, read_image, pixels, images.crop, values.images.scales, **options
        )
    symmetry = Symmetry.read(values.symmetry) if values.symmetry else None
    wanted = Wanted(
        masks=values.heads.masks,
        keypoints=values.layout == "keypoints",
        surfaces=values.layout == "densepose",
        symmetry=symmetry,
    )
    sizes = Sizes(images.short, images.longest)
    return detection_loader(examples, order, read_image, pixels, sizes, wanted, divisor=divisor, **options)


def optimizer(values: TransferRecipe, model: nn.Module) -> torch.optim.Optimizer:
    """Stochastic gradient descent without weight decay on normalisation."""
    groups = parameter_groups(model, values.weight_decay)
    return torch.optim.SGD(groups, lr=values.lr, momentum=values.momentum)


def learning_rate(values: TransferRecipe, step: int) -> float:
    """The learning rate of a step: linear warm-up, then drops by ten at the milestones."""
    schedule, lr = values.schedule, linear_scaling(values.lr, values.batch, REFERENCE_BATCH)
    lr *= 0.1 ** sum(step >= math.floor(part * values.iterations + 1e-9) for part in schedule.milestones)
    if step >= schedule.warmup:
        return lr
    part = step / schedule.warmup
    return lr * (schedule.warmup_factor * (1 - part) + part)


def metric_names(values: TransferRecipe) -> Iterator[str]:
    """The columns of the paper's table for this task."""
    if values.layout.endswith("segmentation"):
        yield "mIoU"
    elif values.layout == "voc":
        yield from ("AP50", "AP", "AP75")
    elif values.layout in ("keypoints", "densepose"):
        surfaces = "GPS" if values.geodesic else "box"  # without the body only boxes are measured
        kind = "keypoint" if values.layout == "keypoints" else surfaces
        yield from (f"{kind} AP", f"{kind} AP50", f"{kind} AP75")
    else:
        for kind in ("box", "mask"):
            yield from (f"{kind} AP", f"{kind} AP50", f"{kind} AP75")
