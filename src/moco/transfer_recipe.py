"""The values of a transfer experiment: which task, which network, which schedule. No torch.

As for pre-training, a recipe stores independent values only, and the command line turns each into a flag.
"""

from dataclasses import dataclass, field
from typing import Literal

from moco.recipe import require

LAYOUTS = (
    "voc", "coco", "keypoints", "densepose", "lvis", "cityscapes", "voc-segmentation",
    "cityscapes-segmentation",
)  # fmt: skip
MODELS = ("c4", "dilated-c5", "fpn", "fcn")


@dataclass(frozen=True)
class Trunk:
    """What a random start takes; another start brings its own."""

    arch: str = "resnet50"
    """resnet10/18/34/50/101/152, resnext50_32x8d, resnet50w2x or resnet50w4x."""
    width: int | None = None
    """Channels of the first stage; None is the architecture's own."""
    stem: Literal["imagenet", "small", "small2"] = "imagenet"
    """imagenet: 7x7 stride 2 and a pool; small: 3x3 stride 1; small2: 3x3 stride 2."""
    norm: Literal["synced", "frozen"] = "synced"
    """Batch normalisation of the trunk: trained over all processes, or a fixed scale and shift."""


@dataclass(frozen=True)
class Images:
    """Sizes in pixels; `factor` shrinks them all."""

    short: tuple[int, ...] = tuple(range(480, 801, 32))
    """Short sides, one of which is drawn for each training image."""
    longest: int = 1333
    """Limit of the long side."""
    test_short: int = 800
    """Short side of test images."""
    test_longest: int = 1333
    """Limit of their long side."""
    crop: int = 513
    """Side of training crops (segmentation)."""
    scales: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest random scale (segmentation)."""
    factor: float = 1.0
    """Multiplies short sides, limits, crop and anchors: 0.25 for a small machine."""

    def __post_init__(self):
        require(self.factor > 0, f"images.factor must be above 0, got {self.factor}")
        require(
            bool(self.short) and min(self.short) >= 1, f"images.short must be at least 1, got {self.short}"
        )
        require(self.crop >= 1, f"images.crop must be at least 1, got {self.crop}")
        require(
            0 < self.scales[0] <= self.scales[1], f"images.scales must be small, large; got {self.scales}"
        )


@dataclass(frozen=True)
class Heads:
    """What is built on the trunk."""

    model: Literal["c4", "dilated-c5", "fpn", "fcn"] = "c4"
    """Detector on conv4, on a dilated conv5 or on a feature pyramid; fcn is segmentation."""
    masks: bool = False
    """Also predict a mask for each object."""
    anchors: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    """Sizes: all on one feature map, or one for each of a pyramid's five."""
    train_before: int = 12000
    """Proposals kept before duplicates go, on each feature map, in training."""
    train_after: int = 2000
    """Proposals kept after that."""
    test_before: int = 6000
    """Proposals kept before duplicates go, in testing."""
    test_after: int = 1000
    """Proposals kept after that."""
    regions: int = 512
    """Regions trained on in each image."""
    beta: float = 0.0
    """Distance below which the box loss is quadratic; 0 is plain L1."""
    threshold: float = 0.05
    """Least score of a detection."""
    most: int = 100
    """Detections per image."""
    channels: int = 256
    """Of the pyramid, or of segmentation's convolutions; a dilated conv5 is brought to twice as many."""
    hidden: int = 1024
    """Width of the two fully connected layers."""
    branch: int | None = None
    """Channels of a branch: 256 for masks, 512 for keypoints and dense pose; None is that."""

    def __post_init__(self):
        require(self.model in MODELS, f"heads.model must be one of {', '.join(MODELS)}, got {self.model!r}")
        require(
            self.model != "fpn" or len(self.anchors) == 5,
            f"heads.anchors must have one size for each of a pyramid's 5 maps, got {self.anchors}",
        )
        require(
            not (self.masks and self.model == "dilated-c5"),
            "heads.masks needs model c4 or fpn, got dilated-c5",
        )
        for name in "train_before", "train_after", "test_before", "test_after", "regions", "most":
            require(getattr(self, name) >= 1, f"heads.{name} must be at least 1, got {getattr(self, name)}")
        require(0 <= self.threshold < 1, f"heads.threshold must be in [0, 1), got {self.threshold}")


@dataclass(frozen=True)
class Schedule:
    """Learning rate over the run."""

    milestones: tuple[float, ...] = (0.75, 11 / 12)
    """Parts of the run after which the learning rate is multiplied by 0.1."""
    warmup: int = 100
    """Steps over which it rises linearly."""
    warmup_factor: float = 0.001
    """Where the rise begins."""

    def __post_init__(self):
        require(
            all(0 < m < 1 for m in self.milestones),
            f"schedule.milestones must be parts of the run in (0, 1), got {self.milestones}",
        )
        require(self.warmup >= 0, f"schedule.warmup must not be negative, got {self.warmup}")


@dataclass(frozen=True)
class TransferRecipe:
    """Every independent value of a transfer experiment; the defaults are the paper's VOC detection, C4."""

    name: str = "voc-c4"
    layout: Literal[
        "voc",
        "coco",
        "keypoints",
        "densepose",
        "lvis",
        "cityscapes",
        "voc-segmentation",
        "cityscapes-segmentation",
    ] = "voc"
    """Of the data, and with it the metric."""
    train: tuple[str, ...] = ("VOC2007:trainval", "VOC2012:trainval")
    """Splits to train on."""
    test: str = "VOC2007:test"
    """Split to measure on."""
    trunk: Trunk = field(default_factory=Trunk)
    images: Images = field(default_factory=Images)
    heads: Heads = field(default_factory=Heads)
    schedule: Schedule = field(default_factory=Schedule)
    iterations: int = 24_000
    """Steps in all."""
    batch: int = 16
    """Images per step, over all processes."""
    lr: float = 0.02
    """Learning rate of a batch of 16; another batch scales it linearly."""
    momentum: float = 0.9
    """Of the gradients."""
    weight_decay: float = 1e-4
    """On everything but the scales and shifts of normalisation."""
    repeat_below: float = 0.0
    """Share of images below which a class is rare, and images that show it come more often; 0 is off."""
    precise: int = 200
    """Training batches over which normalisation is measured before evaluation; 0 keeps running means."""
    symmetry: str | None = None
    """UV_symmetry_transforms.mat of the DensePose data; None does not mirror images there."""
    geodesic: str | None = None
    """Folder of the DensePose evaluation's files; None measures boxes only."""
    seed: int = 0
    """Of the first trial; the others count on."""
    journal_every: int = 20
    """Steps between rows of the journal, each the mean over those steps."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep."""

    def __post_init__(self):
        require(self.layout in LAYOUTS, f"layout must be one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        segmentation = self.layout.endswith("segmentation")
        require(
            segmentation == (self.heads.model == "fcn"),
            f"segmentation takes heads.model fcn, detection another; got {self.heads.model} on {self.layout}",
        )
        require(
            self.layout not in ("keypoints", "densepose") or self.heads.model == "fpn",
            f"{self.layout} needs heads.model fpn, got {self.heads.model}",
        )
        require(bool(self.train), "train must name at least one split")
        require(
            self.layout in ("voc", "densepose") or len(self.train) == 1,
            f"only the splits of VOC and DensePose can be joined, got {self.train}",
        )
        for name in "iterations", "batch", "journal_every", "checkpoint_every", "keep_checkpoints":
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        require(self.lr > 0, f"lr must be above 0, got {self.lr}")
        require(0 <= self.momentum < 1, f"momentum must be in [0, 1), got {self.momentum}")
        require(self.weight_decay >= 0, f"weight_decay must not be negative, got {self.weight_decay}")
        require(self.precise >= 0, f"precise must not be negative, got {self.precise}")
        require(self.repeat_below >= 0, f"repeat_below must not be negative, got {self.repeat_below}")
        require(
            self.schedule.warmup < self.iterations,
            f"schedule.warmup must be shorter than the run of {self.iterations} steps, got "
            f"{self.schedule.warmup}; write --schedule.warmup {self.iterations // 10}",
        )
        require(
            not (self.heads.masks and self.layout == "voc"), "VOC's boxes have no masks; use a recipe of coco"
        )
