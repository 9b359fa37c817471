"""The dense-pose branch: for each pixel of a person a body part and U, V on it.

Source: Güler et al. 2018 and MoCo, Table 6; loss weights of the paper's stack. Legend: R regions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchvision.ops import box_iou

from moco.transfer.example import Detections
from moco.transfer.regions import Branch, Pooler, Regions
from moco.transfer.surface import PARTS

_SIDE = 28
_LEAST_OVERLAP = 0.7  # of a region that is trained on with its person
_COARSE_WEIGHT, _PART_WEIGHT, _UV_WEIGHT = 5.0, 1.0, 0.01


@dataclass(frozen=True)
class Surface:
    """What was found in one box, whose pixels are counted from its rounded left upper corner.

    Attributes:
        left, top: of the box, in whole pixels.
        parts: 0 nothing, else 1 to 24.
        uv: U and V in [0, 1].
    """

    left: int
    top: int
    parts: Int[Tensor, "height width"]
    uv: Float[Tensor, "2 height width"]


class Decoder(nn.Module):
    """Four maps of a pyramid brought to the finest one's resolution, summed and mixed."""

    def __init__(self, channels: int, strides: Sequence[int]):
        super().__init__()
        self.scales = nn.ModuleList()
        for stride in strides:
            doublings = round(math.log2(stride / strides[0]))
            layers: list[nn.Module] = []
            for _ in range(max(doublings, 1)):
                layers += [_convolution(channels, channels), nn.ReLU()]
                if doublings:
                    layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            self.scales.append(nn.Sequential(*layers))
        self.mix = _convolution(channels, channels, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        total = self.scales[0](maps[0])
        for scale, x in zip(self.scales[1:], maps[1:], strict=True):
            larger = scale(x)
            total = total + larger[:, :, : total.shape[2], : total.shape[3]]
        return self.mix(total)


class SurfaceBranch(Branch):
    """Eight convolutions, then maps of 112 cells: body or not, part (25), U and V for each part.

    Args:
        channels: of the pyramid.
        strides: of its four finest maps.
        width: channels of its layers.
        convolutions: 3x3 convolutions before the doublings of the resolution.
    """

    def __init__(self, channels: int, strides: Sequence[int], *, width: int = 512, convolutions: int = 8):
        super().__init__()
        self.maps = len(strides)
        self.decoder = Decoder(channels, strides)
        self.pooler = Pooler(_SIDE, strides[:1])
        layers: list[nn.Module] = []
        for number in range(convolutions):
            layers += [_convolution(width if number else channels, width), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.outputs = (2, PARTS + 1, PARTS + 1, PARTS + 1)
        self.predict = nn.ConvTranspose2d(width, sum(self.outputs), 4, stride=2, padding=1)
        nn.init.kaiming_normal_(self.predict.weight, mode="fan_out", nonlinearity="relu")
        assert self.predict.bias is not None
        nn.init.zeros_(self.predict.bias)

    def prepare(self, features: list[Tensor]) -> list[Tensor]:
        return [self.decoder(features[: self.maps])]

    def useful(self, regions: Regions) -> Bool[Tensor, " R"]:
        """Those that overlap a person with points well."""
        if not len(regions.boxes):
            return torch.zeros_like(regions.labels, dtype=torch.bool)
        overlap = box_iou(regions.boxes, regions.target.boxes)
        own = overlap.gather(1, regions.owners[:, None])[:, 0]
        points = regions.target.points
        annotated = [bool(points) and points[int(o)] is not None for o in regions.owners]
        return torch.tensor(annotated, device=own.device) & (own >= _LEAST_OVERLAP)

    def losses(self, pooled: Tensor, regions: Sequence[Regions]) -> dict[str, Tensor]:
        coarse, part, u, v = self._maps(pooled)
        zero = part.sum() * 0 + coarse.sum() * 0 + u.sum() * 0 + v.sum() * 0
        sampled = _sampled(part, u, v, regions)
        losses = {"surface_inside": zero, "surface_part": zero, "surface_u": zero, "surface_v": zero}
        if sampled is not None:
            logits, labels, own, goal = sampled
            losses["surface_part"] = _PART_WEIGHT * F.cross_entropy(logits, labels)
            losses["surface_u"] = _UV_WEIGHT * F.smooth_l1_loss(own[0], goal[:, 0], reduction="sum")
            losses["surface_v"] = _UV_WEIGHT * F.smooth_l1_loss(own[1], goal[:, 1], reduction="sum")
        rows, truth = _inside(regions, coarse.shape[-1])
        if len(rows):
            losses["surface_inside"] = _COARSE_WEIGHT * F.cross_entropy(coarse[rows], truth)
        return losses

    def complete(self, pooled: Tensor, found: Detections, height: int, width: int) -> Detections:
        maps = self._maps(pooled)
        surfaces = tuple(
            resample(coarse, part, u, v, box, height, width)
            for coarse, part, u, v, box in zip(*maps, found.boxes, strict=True)
        )
        return replace(found, surfaces=surfaces)

    def _maps(self, pooled: Tensor) -> tuple[Tensor, ...]:
        x = F.interpolate(
            self.predict(self.layers(pooled)), scale_factor=2, mode="bilinear", align_corners=False
        )
        return x.split(self.outputs, dim=1)


def resample(
    coarse: Float[Tensor, "2 side side"],
    part: Float[Tensor, "parts side side"],
    u: Float[Tensor, "parts side side"],
    v: Float[Tensor, "parts side side"],
    box: Float[Tensor, " 4"],
    height: int,
    width: int,
) -> Surface:
    """The maps of one region at the resolution of the image: the best part where the body is, U, V of it."""
    left, top = int(box[0]), int(box[1])
    columns = max(1, min(math.ceil(float(box[2])), width) - left)
    rows = max(1, min(math.ceil(float(box[3])), height) - top)
    large = F.interpolate(
        torch.cat([coarse, part, u, v])[None], (rows, columns), mode="bilinear", align_corners=False
    )[0]
    coarse, part, u, v = large.split([2, len(part), len(u), len(v)])
    parts = part.argmax(0) * (coarse.argmax(0) > 0)
    uv = torch.cat([u.gather(0, parts[None]), v.gather(0, parts[None])]).clamp(0, 1)
    return Surface(left, top, parts, uv)


def _sampled(
    part: Tensor, u: Tensor, v: Tensor, regions: Sequence[Regions]
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], Tensor] | None:
    """Predictions interpolated at the annotated points that lie in their region, and what they should be."""
    logits, labels, us, vs, goals = [], [], [], [], []
    row = 0
    for r in regions:
        for box, owner in zip(r.boxes, r.owners, strict=True):
            points = r.target.points[int(owner)]
            assert points is not None
            person = r.target.boxes[owner]
            place = person[:2] + points.places * (person[2:] - person[:2])
            grid = (place - box[:2]) / (box[2:] - box[:2]) * 2 - 1
            keep = (grid.abs() <= 1).all(1)
            if not bool(keep.any()):
                row += 1
                continue
            own = points.parts[keep]
            read = F.grid_sample(
                torch.cat([part[row], u[row], v[row]])[None], grid[None, keep][None], align_corners=False
            )[0, :, 0].T
            p, ux, vx = read.split([part.shape[1], u.shape[1], v.shape[1]], dim=1)
            logits.append(p)
            labels.append(own)
            us.append(ux.gather(1, own[:, None])[:, 0])
            vs.append(vx.gather(1, own[:, None])[:, 0])
            goals.append(points.uv[keep])
            row += 1
    if not labels or not sum(len(label) for label in labels):
        return None
    return torch.cat(logits), torch.cat(labels), (torch.cat(us), torch.cat(vs)), torch.cat(goals)


def _inside(regions: Sequence[Regions], side: int) -> tuple[list[int], Tensor]:
    """Rows whose person has a coarse mask, and the mask at the cells of the region."""
    rows, truth, row = [], [], 0
    cells = (torch.arange(side) + 0.5) / side
    for r in regions:
        for box, owner in zip(r.boxes, r.owners, strict=True):
            points = r.target.points[int(owner)]
            if points is not None and points.inside is not None:
                person = r.target.boxes[owner]
                at = [box[a] + cells.to(box) * (box[a + 2] - box[a]) for a in (0, 1)]
                x, y = (
                    (place - person[a]) / (person[a + 2] - person[a]) * 2 - 1 for a, place in enumerate(at)
                )
                grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
                mask = points.inside[None, None].to(box)
                truth.append(
                    F.grid_sample(mask, grid[None], mode="nearest", align_corners=False)[0, 0].long()
                )
                rows.append(row)
            row += 1
    return rows, torch.stack(truth) if truth else torch.zeros(0, side, side, dtype=torch.long)


def _convolution(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution
