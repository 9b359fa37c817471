"""What is in each proposed region: classes, better boxes, and branches for masks, joints and surfaces.

Source: Fast and Mask R-CNN in the form of the paper's stack: aligned RoIAlign, L1 distance, background
as the last class. Legend: K classes, R regions, D detections.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchvision.ops import batched_nms, roi_align

from moco.transfer import boxes as B
from moco.transfer.batch import Targets
from moco.transfer.example import Detections

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
_CANONICAL_SIDE, _CANONICAL_LEVEL = 224, 4  # a region of 224 pixels belongs to stride 16


@dataclass(frozen=True)
class Regions:
    """Sampled regions of one image: boxes, class (K is background), number of the object they are of."""

    boxes: Float[Tensor, "R 4"]
    labels: Int[Tensor, " R"]
    owners: Int[Tensor, " R"]
    target: Targets

    def chosen(self, rows: Bool[Tensor, " R"]) -> "Regions":
        """Some of the regions."""
        return Regions(self.boxes[rows], self.labels[rows], self.owners[rows], self.target)


class Pooler(nn.Module):
    """Features of regions, from the feature map whose stride suits their size.

    Args:
        side: cells per side of the result.
        strides: of the feature maps that are pooled from; further ones are left alone.
        canonical: side of a region, in pixels, that belongs to stride 16.
    """

    def __init__(self, side: int, strides: Sequence[int], canonical: float = _CANONICAL_SIDE):
        super().__init__()
        self.side, self.strides, self.canonical = side, tuple(strides), canonical

    def forward(self, features: list[Tensor], regions: Sequence[Tensor]) -> Float[Tensor, "R C side side"]:
        maps = features[: len(self.strides)]
        rows = torch.cat(
            [torch.cat([found.new_full((len(found), 1), i), found], dim=1) for i, found in enumerate(regions)]
        )
        if len(maps) == 1:
            return self._pool(maps[0], rows, self.strides[0])
        level = self._level(rows[:, 1:])
        result = maps[0].new_zeros(len(rows), maps[0].shape[1], self.side, self.side)
        for number, (x, stride) in enumerate(zip(maps, self.strides, strict=True)):
            here = (level == number).nonzero().flatten()
            result = result.index_put((here,), self._pool(x, rows[here], stride))
        return result

    def _pool(self, x: Tensor, rows: Tensor, stride: int) -> Tensor:
        return roi_align(x, rows, self.side, 1 / stride, sampling_ratio=-1, aligned=True)

    def _level(self, found: Tensor) -> Int[Tensor, " R"]:
        side = ((found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1])).sqrt()
        lowest = round(math.log2(self.strides[0]))
        level = torch.floor(_CANONICAL_LEVEL + torch.log2(side / self.canonical + 1e-8)).long() - lowest
        return level.clamp(0, len(self.strides) - 1)


class Branch(nn.Module, ABC):
    """Predicts something more about regions that hold an object.

    Attributes:
        pooler: gets the branch's own features; None shares those of the box head.
    """

    pooler: nn.Module | None

    @abstractmethod
    def useful(self, regions: Regions) -> Bool[Tensor, " R"]:
        """Which regions with an object it can be trained on."""

    @abstractmethod
    def losses(self, pooled: Tensor, regions: Sequence[Regions]) -> dict[str, Tensor]:
        """Losses, given the features of all useful regions."""

    @abstractmethod
    def complete(self, pooled: Tensor, found: Detections, height: int, width: int) -> Detections:
        """The detections of one image with the branch's predictions, in pixels of an image of that size."""

    def prepare(self, features: list[Tensor]) -> list[Tensor]:
        """Feature maps as the branch's pooler wants them."""
        return features


class RegionHeads(nn.Module):
    """Classifies regions and refines their boxes, then runs the branches.

    Args:
        pooler: gets features of regions.
        head: features (R, C, side, side) to vectors, or to smaller maps, which are averaged.
        features: length of a vector.
        classes: K.
        branches: by name.
        beta: distance below which the box loss is quadratic; 0 is plain L1.
        per_image: regions that are trained on in each image.
        share: largest part of them that are objects.
        threshold: least score of a detection.
        overlap: detections of a class that overlap a better one more are duplicates.
        most: detections kept per image.
    """

    def __init__(
        self,
        pooler: Pooler,
        head: nn.Module,
        features: int,
        classes: int,
        *,
        branches: Mapping[str, Branch] | None = None,
        beta: float = 0.0,
        per_image: int = 512,
        share: float = 0.25,
        threshold: float = 0.05,
        overlap: float = 0.5,
        most: int = 100,
    ):
        super().__init__()
        self.pooler, self.head, self.classes = pooler, head, classes
        self.branches = nn.ModuleDict(dict(branches or {}))
        self.beta, self.per_image, self.share = beta, per_image, share
        self.threshold, self.overlap, self.most = threshold, overlap, most
        self.score = nn.Linear(features, classes + 1)
        self.move = nn.Linear(features, 4 * classes)
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.normal_(self.move.weight, std=0.001)
        nn.init.zeros_(self.score.bias)
        nn.init.zeros_(self.move.bias)

    def losses(
        self,
        features: list[Tensor],
        proposals: Sequence[Tensor],
        targets: Sequence[Targets],
        draws: Sequence[torch.Generator],
    ) -> dict[str, Tensor]:
        """Losses of boxes and of every branch."""
        regions = [self._sample(*one) for one in zip(proposals, targets, draws, strict=True)]
        shared = self.head(self.pooler(features, [r.boxes for r in regions]))
        logits, moves = self._predict(shared)
        labels = torch.cat([r.labels for r in regions])
        rows = (labels < self.classes).nonzero().flatten()
        goal = torch.cat(
            [
                B.encode(r.target.boxes[r.owners], r.boxes, WEIGHTS)
                if len(r.target.boxes)
                else torch.zeros_like(r.boxes)
                for r in regions
            ]
        )
        predicted = moves.unflatten(1, (self.classes, 4))[rows, labels[rows]]
        if self.beta:
            distance = F.smooth_l1_loss(predicted, goal[rows], reduction="sum", beta=self.beta)
        else:
            distance = (predicted - goal[rows]).abs().sum()
        losses = {"box_class": F.cross_entropy(logits, labels), "box": distance / max(len(labels), 1)}
        for branch in self.branches.values():
            losses |= self._branch_losses(branch, features, shared, regions)
        return losses

    def _branch_losses(
        self, branch: nn.Module, features: list[Tensor], shared: Tensor, regions: Sequence[Regions]
    ) -> dict[str, Tensor]:
        assert isinstance(branch, Branch)
        used = []
        for r in regions:
            rows = r.labels < self.classes
            rows[rows.clone()] = branch.useful(r.chosen(rows))
            used.append(rows)
        chosen = [r.chosen(rows) for r, rows in zip(regions, used, strict=True)]
        if branch.pooler is None:
            pooled = shared[torch.cat(used)]
        else:
            pooled = branch.pooler(branch.prepare(features), [r.boxes for r in chosen])
        return branch.losses(pooled, chosen)

    def detect(
        self, features: list[Tensor], proposals: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Detections in the network's input, best first, without the branches' part."""
        logits, moves = self._predict(self.head(self.pooler(features, proposals)))
        counts = [len(found) for found in proposals]
        results = []
        for found, scores, shifts, size in zip(
            proposals, logits.softmax(1).split(counts), moves.split(counts), sizes, strict=True
        ):
            decoded = B.clip(B.decode(shifts, found, WEIGHTS), *size).unflatten(1, (self.classes, 4))
            finite = decoded.isfinite().all(2).all(1, keepdim=True) & scores.isfinite().all(1, keepdim=True)
            rows, labels = ((scores[:, :-1] > self.threshold) & finite).nonzero(as_tuple=True)
            best, score = decoded[rows, labels], scores[rows, labels]
            keep = batched_nms(best, score, labels, self.overlap)[: self.most]
            results.append(Detections(best[keep], score[keep], labels[keep]))
        return results

    def complete(
        self,
        features: list[Tensor],
        found: Sequence[Detections],
        sizes: Sequence[tuple[int, int]],
        originals: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        """Detections in pixels of the files, with the branches' part.

        Args:
            features: of the images.
            found: detections in the network's input.
            sizes: height and width of the network's input.
            originals: height and width of the files.
        """
        results = [_rescaled(one, *rest) for one, *rest in zip(found, sizes, originals, strict=True)]
        for branch in self.branches.values():
            assert isinstance(branch, Branch)
            regions = [one.boxes for one in found]
            if branch.pooler is None:
                pooled = self.head(self.pooler(features, regions))
            else:
                pooled = branch.pooler(branch.prepare(features), regions)
            parts = pooled.split([len(one) for one in found])
            results = [
                branch.complete(part, one, *original)
                for part, one, original in zip(parts, results, originals, strict=True)
            ]
        return results

    def _sample(self, proposals: Tensor, target: Targets, draws: torch.Generator) -> Regions:
        """Regions to train on; the annotated boxes are proposals too."""
        found = torch.cat([proposals, target.boxes])
        which, kind = B.match(target.boxes, found, 0.5, 0.5, keep_best=False)
        rows = torch.cat(B.sample(kind == 1, kind == 0, self.per_image, self.share, draws))
        labels = torch.full_like(which, self.classes)
        if len(target.labels):
            labels = torch.where(kind == 1, target.labels[which], labels)
        return Regions(found[rows], labels[rows], which[rows], target)

    def _predict(self, shared: Tensor) -> tuple[Tensor, Tensor]:
        vectors = shared.mean((2, 3)) if shared.ndim == 4 else shared
        return self.score(vectors), self.move(vectors)


def _rescaled(found: Detections, size: tuple[int, int], original: tuple[int, int]) -> Detections:
    vertical, horizontal = original[0] / size[0], original[1] / size[1]
    factor = found.boxes.new_tensor([horizontal, vertical, horizontal, vertical])
    return replace(found, boxes=B.clip(found.boxes * factor, *original))
