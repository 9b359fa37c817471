"""The keypoint branch of Mask R-CNN: one heat map for each joint, whose peak is where the joint is."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moco.transfer.example import Detections
from moco.transfer.regions import Branch, Pooler, Regions


class KeypointBranch(Branch):
    """Eight convolutions and two doublings of the resolution: 14 to 56 cells.

    Args:
        channels: of its features.
        joints: how many.
        pooler: gets its features.
        width: channels of its layers.
        convolutions: 3x3 convolutions before the doublings.

    Source: He et al. 2017; Section 4.2 of MoCo's keypoint detection.
    """

    def __init__(
        self, channels: int, joints: int, pooler: Pooler, *, width: int = 512, convolutions: int = 8
    ):
        super().__init__()
        self.pooler = pooler
        layers: list[nn.Module] = []
        for number in range(convolutions):
            layers += [nn.Conv2d(width if number else channels, width, 3, padding=1), nn.ReLU()]
        layers.append(nn.ConvTranspose2d(width if convolutions else channels, joints, 4, stride=2, padding=1))
        for layer in layers:
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        self.layers = nn.Sequential(*layers)

    def useful(self, regions: Regions) -> Bool[Tensor, " R"]:
        """Those with a labelled joint inside."""
        keypoints = regions.target.keypoints
        assert keypoints is not None
        own = keypoints[regions.owners]
        x, y = own[:, :, 0], own[:, :, 1]
        left, top, right, bottom = (side[:, None] for side in regions.boxes.unbind(1))
        inside = (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
        return (inside & (own[:, :, 2] > 0)).any(1)

    def losses(self, pooled: Tensor, regions: Sequence[Regions]) -> dict[str, Tensor]:
        logits = self._maps(pooled)
        if not len(logits):
            return {"keypoint": logits.sum() * 0}
        cells, valid = zip(*(heat_cells(r, logits.shape[-1]) for r in regions if len(r.boxes)), strict=True)
        rows, goal = torch.cat(valid).flatten(), torch.cat(cells).flatten()
        if not bool(rows.any()):  # a joint on the very edge of its region can round out of it
            return {"keypoint": logits.sum() * 0}
        return {"keypoint": F.cross_entropy(logits.flatten(2).flatten(0, 1)[rows], goal[rows])}

    def complete(self, pooled: Tensor, found: Detections, height: int, width: int) -> Detections:
        return replace(found, keypoints=peaks(self._maps(pooled), found.boxes))

    def _maps(self, pooled: Tensor) -> Tensor:
        return F.interpolate(self.layers(pooled), scale_factor=2, mode="bilinear", align_corners=False)


def heat_cells(regions: Regions, side: int) -> tuple[Int[Tensor, "R joints"], Bool[Tensor, "R joints"]]:
    """In which of side x side cells of its region each joint lies, and whether it is labelled and inside."""
    assert regions.target.keypoints is not None
    own = regions.target.keypoints[regions.owners]
    corner = regions.boxes[:, None, :2]
    extent = (regions.boxes[:, None, 2:] - corner).clamp(min=1e-6)
    place = (own[:, :, :2] - corner) / extent * side
    at_edge = own[:, :, :2] == regions.boxes[:, None, 2:]  # the far edge belongs to the last cell
    cell = torch.where(at_edge, side - 1, place.floor().long())
    inside = ((cell >= 0) & (cell < side)).all(2)
    valid = inside & (own[:, :, 2] > 0)
    return (cell[:, :, 1] * side + cell[:, :, 0]) * valid, valid


@torch.no_grad()
def peaks(
    maps: Float[Tensor, "D joints side side"], boxes: Float[Tensor, "D 4"]
) -> Float[Tensor, "D joints 3"]:
    """The peak of each heat map, resized to its box: x and y of the pixel's centre, and its probability."""
    result = maps.new_zeros(len(maps), maps.shape[1], 3)
    for row, own, box in zip(result, maps, boxes, strict=True):
        left, top, right, bottom = box.tolist()
        extent = max(right - left, 1.0), max(bottom - top, 1.0)
        width, height = (int(-(-side // 1)) for side in extent)
        large = F.interpolate(own[None], (height, width), mode="bicubic", align_corners=False)[0]
        best = large.flatten(1).argmax(1)
        row[:, 0] = (best % width + 0.5) * extent[0] / width + left
        row[:, 1] = (best // width + 0.5) * extent[1] / height + top
        row[:, 2] = own.flatten(1).softmax(1).amax(1)
    return result
