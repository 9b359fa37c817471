"""Detectors of the R-CNN family, assembled as the paper's tables name them.

Source: MoCo, Section 4.2 and appendix A.1.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moco.transfer import boxes as B
from moco.transfer.batch import DetectionBatch, ImageList
from moco.transfer.example import Detections
from moco.transfer.norm import new_norm
from moco.transfer.proposals import Counts, ProposalNetwork
from moco.transfer.regions import Branch, Pooler, RegionHeads
from moco.transfer.trunks import LastStage, Pyramid, Stages, convolution_and_norm, dilate, require_residual
from moco.world import World

C4_SIZES = ((32.0, 64.0, 128.0, 256.0, 512.0),)
FPN_SIZES = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))


class Detector(nn.Module):
    """Backbone, proposals, regions."""

    backbone: LastStage | Pyramid
    proposals: ProposalNetwork
    regions: RegionHeads

    def __init__(self, backbone: LastStage | Pyramid, proposals: ProposalNetwork, regions: RegionHeads):
        super().__init__()
        self.backbone, self.proposals, self.regions = backbone, proposals, regions

    @property
    def divisor(self) -> int:
        """The sides of its input must be multiples of this."""
        return self.backbone.divisor

    def losses(self, batch: DetectionBatch) -> dict[str, Tensor]:
        """Every loss by name; the sum is minimised. The same batch always gives the same losses."""
        features, draws = self.backbone(batch.images.pixels), batch.draws()
        anchors, logits, moves = self.proposals(features)
        proposals = self.proposals.propose(anchors, logits, moves, batch.images.sizes)
        losses = self.proposals.losses(anchors, logits, moves, batch.targets, draws)
        return losses | self.regions.losses(features, proposals, batch.targets, draws)

    @torch.no_grad()
    def detect(self, images: ImageList, originals: Sequence[tuple[int, int]]) -> list[Detections]:
        """Detections in evaluation mode, in pixels of files of these heights and widths."""
        features = self.backbone(images.pixels)
        anchors, logits, moves = self.proposals(features)
        proposals = self.proposals.propose(anchors, logits, moves, images.sizes)
        found = self.regions.detect(features, proposals, images.sizes)
        completed = self.regions.complete(features, found, images.sizes, originals)
        return [_without_empty(one) for one in completed]


def _without_empty(found: Detections) -> Detections:
    keep = B.nonempty(found.boxes)
    if bool(keep.all()):
        return found
    rows = keep.nonzero().flatten()
    return Detections(
        found.boxes[rows],
        found.scores[rows],
        found.labels[rows],
        None if found.masks is None else found.masks[rows],
        None if found.keypoints is None else found.keypoints[rows],
        tuple(found.surfaces[int(row)] for row in rows) if found.surfaces else (),
    )


class Conv5Head(nn.Module):
    """The trunk's last stage and an extra batch normalisation, applied to regions.

    Source: MoCo, appendix A.1: the box head of R50-C4 is conv5 with a following normalisation.
    """

    def __init__(self, stage: nn.Module, channels: int, world: World):
        super().__init__()
        self.stage, self.norm = stage, new_norm(world)(channels)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.norm(self.stage(pooled))


def two_layers(inputs: int, width: int = 1024) -> nn.Sequential:
    """Two hidden fully connected layers."""
    first, second = nn.Linear(inputs, width), nn.Linear(width, width)
    for layer in (first, second):
        nn.init.kaiming_uniform_(layer.weight, a=1)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU())


def c4(
    trunk: nn.Module,
    classes: int,
    world: World,
    *,
    sizes: Sequence[Sequence[float]] = C4_SIZES,
    counts: Counts | None = None,
    branches: dict[str, Branch] | None = None,
    regions: int = 512,
    **options: Any,
) -> Detector:
    """R-CNN with a C4 backbone: regions are cut from conv4 and pass through conv5.

    Args:
        trunk: with normalisations already set; it is taken apart.
        classes: K.
        world: the processes.
        sizes: of the anchors.
        counts: of proposals; None takes the paper's.
        branches: that share conv5's features.
        regions: per image, to train on.
        options: further ones of `RegionHeads`.
    """
    backbone = LastStage(Stages(trunk, last=3))
    channels = Stages(trunk).channels[-1]
    return Detector(
        backbone,
        ProposalNetwork(backbone.channels, backbone.strides, sizes, counts or Counts()),
        RegionHeads(
            Pooler(14, backbone.strides),
            Conv5Head(trunk.get_submodule("layer4"), channels, world),
            channels,
            classes,
            branches=branches,
            per_image=regions,
            **options,
        ),
    )


def dilated_c5(
    trunk: nn.Module,
    classes: int,
    world: World,
    *,
    sizes: Sequence[Sequence[float]] = C4_SIZES,
    counts: Counts | None = None,
    regions: int = 512,
    width: int = 512,
    hidden: int = 1024,
    **options: Any,
) -> Detector:
    """R-CNN on conv5 at stride 16, brought to 512 channels by a 3x3 convolution with normalisation.

    Args:
        trunk, classes, world, sizes, counts, regions, options: see `c4`.
        width: channels after the convolution.
        hidden: width of the box head's two layers.
    """
    require_residual(trunk)
    dilate(trunk.get_submodule("layer4"))
    stages = Stages(trunk)
    after = convolution_and_norm(stages.channels[-1], width, world)
    backbone = LastStage(stages, after, width)
    return Detector(
        backbone,
        ProposalNetwork(width, backbone.strides, sizes, counts or Counts()),
        RegionHeads(
            Pooler(7, backbone.strides),
            two_layers(width * 49, hidden),
            hidden,
            classes,
            per_image=regions,
            **options,
        ),
    )


def fpn(
    trunk: nn.Module,
    classes: int,
    world: World,
    *,
    sizes: Sequence[Sequence[float]] = FPN_SIZES,
    counts: Counts | None = None,
    branches: dict[str, Branch] | None = None,
    regions: int = 512,
    channels: int = 256,
    hidden: int = 1024,
    canonical: float = 224,
    **options: Any,
) -> Detector:
    """R-CNN on a feature pyramid.

    Args:
        trunk, classes, world, sizes, counts, regions, options: see `c4`.
        branches: with poolers of their own.
        channels: of the pyramid.
        hidden: width of the box head's two layers.
        canonical: see `moco.transfer.regions.Pooler`.
    """
    backbone = Pyramid(Stages(trunk), world, channels)
    counts = counts or Counts(train_before=2000, train_after=1000, test_before=1000, test_after=1000)
    return Detector(
        backbone,
        ProposalNetwork(channels, backbone.strides, sizes, counts),
        RegionHeads(
            Pooler(7, backbone.strides[:4], canonical),
            two_layers(channels * 49, hidden),
            hidden,
            classes,
            branches=branches,
            per_image=regions,
            **options,
        ),
    )
