"""Semantic segmentation with the paper's fully convolutional network of total stride 16.

Source: MoCo, appendix A.5.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from moco.transfer.batch import ImageList, SegmentationBatch
from moco.transfer.example import IGNORED_PIXEL
from moco.transfer.trunks import Stages, convolution_and_norm, dilate, require_residual
from moco.world import World


class Segmenter(nn.Module):
    """conv5 dilated, two 3x3 convolutions of dilation 6 with normalisation, a classifier of single pixels.

    Args:
        trunk: with normalisations already set; it is taken apart.
        classes: how many.
        world: the processes.
        width: channels of the two convolutions.
        dilation: of them.

    Attributes:
        divisor: the sides of its input may be anything.
    """

    divisor = 1

    def __init__(self, trunk: nn.Module, classes: int, world: World, *, width: int = 256, dilation: int = 6):
        super().__init__()
        require_residual(trunk)
        dilate(trunk.get_submodule("layer4"))
        self.backbone = Stages(trunk)
        self.head = nn.Sequential(
            convolution_and_norm(self.backbone.channels[-1], width, world, dilation),
            convolution_and_norm(width, width, world, dilation),
        )
        self.classify = nn.Conv2d(width, classes, 1)
        nn.init.normal_(self.classify.weight, std=0.01)
        assert self.classify.bias is not None
        nn.init.zeros_(self.classify.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes, H, W) at the size of the images."""
        logits = self.classify(self.head(self.backbone(images)[-1]))
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)

    def losses(self, batch: SegmentationBatch) -> dict[str, Tensor]:
        """Cross-entropy, the mean over the pixels that count."""
        logits = self(batch.images.pixels)
        total = F.cross_entropy(logits, batch.labels, ignore_index=IGNORED_PIXEL, reduction="sum")
        return {"pixel_class": total / (batch.labels != IGNORED_PIXEL).sum().clamp(min=1)}

    @torch.no_grad()
    def classes_of(
        self, images: ImageList, originals: Sequence[tuple[int, int]]
    ) -> list[Int[Tensor, "height width"]]:
        """The class of every pixel, at the size of the files."""
        results = []
        for logits, size, original in zip(self(images.pixels), images.sizes, originals, strict=True):
            own = logits[None, :, : size[0], : size[1]]
            if size != original:
                own = F.interpolate(own, original, mode="bilinear", align_corners=False)
            results.append(own[0].argmax(0))
        return results
