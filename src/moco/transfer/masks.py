"""The mask branch of Mask R-CNN: masks of regions from features, and pasted into the image."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torchvision.ops import roi_align

from moco.transfer.example import Detections
from moco.transfer.regions import Branch, Pooler, Regions


class MaskBranch(Branch):
    """Convolutions, one doubling of the resolution, and a mask for each class.

    Args:
        channels: of its features.
        classes: K.
        pooler: None shares conv5's features (C4, no further convolution); else four convolutions.
        width: channels of its layers.
        convolutions: 3x3 convolutions before the doubling.

    Source: He et al. 2017, with the initial values of the paper's stack.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        pooler: Pooler | None = None,
        *,
        width: int = 256,
        convolutions: int | None = None,
    ):
        super().__init__()
        self.pooler = pooler
        count = (0 if pooler is None else 4) if convolutions is None else convolutions
        layers: list[nn.Module] = []
        for number in range(count):
            layers += [nn.Conv2d(width if number else channels, width, 3, padding=1), nn.ReLU()]
        layers += [nn.ConvTranspose2d(width if count else channels, width, 2, stride=2), nn.ReLU()]
        for layer in layers:
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        predictor = nn.Conv2d(width, classes, 1)
        nn.init.normal_(predictor.weight, std=0.001)
        assert predictor.bias is not None
        nn.init.zeros_(predictor.bias)
        self.layers = nn.Sequential(*layers, predictor)

    def useful(self, regions: Regions) -> Bool[Tensor, " R"]:
        return torch.ones_like(regions.labels, dtype=torch.bool)

    def losses(self, pooled: Tensor, regions: Sequence[Regions]) -> dict[str, Tensor]:
        logits = self.layers(pooled)
        if not len(logits):
            return {"mask": logits.sum() * 0}
        labels = torch.cat([r.labels for r in regions])
        own = logits[torch.arange(len(labels), device=labels.device), labels]
        truth = torch.cat([mask_targets(r, own.shape[-1]) for r in regions])
        return {"mask": F.binary_cross_entropy_with_logits(own, truth)}

    def complete(self, pooled: Tensor, found: Detections, height: int, width: int) -> Detections:
        logits = self.layers(pooled)
        own = logits[torch.arange(len(found), device=logits.device), found.labels]
        return replace(found, masks=paste(own.sigmoid(), found.boxes, height, width))


def mask_targets(regions: Regions, side: int) -> Float[Tensor, "R side side"]:
    """Each region's part of its object's mask, as 0 and 1."""
    if not len(regions.boxes):
        return regions.boxes.new_zeros(0, side, side)
    masks = regions.target.masks
    assert masks is not None
    rows = torch.cat([regions.owners[:, None].to(regions.boxes), regions.boxes], dim=1)
    soft = roi_align(masks[:, None].to(regions.boxes), rows, side, 1.0, sampling_ratio=-1, aligned=True)
    return (soft[:, 0] >= 0.5).to(regions.boxes)


def paste(
    masks: Float[Tensor, "D side side"], boxes: Float[Tensor, "D 4"], height: int, width: int
) -> Bool[Tensor, "D height width"]:
    """Masks of regions as masks of the image, interpolated at every pixel's centre, cut at one half."""
    result = torch.zeros(len(masks), height, width, dtype=torch.bool, device=masks.device)
    x = torch.arange(width, device=masks.device) + 0.5
    y = torch.arange(height, device=masks.device) + 0.5
    for out, mask, box in zip(result, masks, boxes, strict=True):  # one at a time bounds the memory
        left, top, right, bottom = box.tolist()
        across = (x - left) / (right - left) * 2 - 1
        down = (y - top) / (bottom - top) * 2 - 1
        grid = torch.stack(torch.meshgrid(across, down, indexing="xy"), dim=-1)
        out.copy_(F.grid_sample(mask[None, None], grid[None].to(mask), align_corners=False)[0, 0] >= 0.5)
    return result
