"""The region proposal network: where in the image something may be.

Source: Ren et al. 2015, in the form of the paper's stack: anchors that are not rounded, proposals ranked
by logit, plain L1 distances. Legend: N images, A anchors of an image, R proposals of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import batched_nms

from moco.transfer import boxes as B
from moco.transfer.batch import Targets

WEIGHTS = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Counts:
    """How many proposals are kept before (per feature map) and after suppression of duplicates."""

    train_before: int = 12000
    train_after: int = 2000
    test_before: int = 6000
    test_after: int = 1000


class ProposalNetwork(nn.Module):
    """Scores and moves anchors on one or several feature maps.

    Args:
        channels: of every feature map.
        strides: pixels between cells of each.
        sizes: of the anchors on each, as square roots of their areas.
        counts: proposals kept.
        ratios: heights divided by widths.
        per_image: anchors that are trained on in each image.
        share: largest part of them that are objects.
        low, high: overlap below which an anchor is background, and from which it is an object.
        overlap: proposals that overlap a better one more are duplicates.
    """

    def __init__(
        self,
        channels: int,
        strides: Sequence[int],
        sizes: Sequence[Sequence[float]],
        counts: Counts,
        *,
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        per_image: int = 256,
        share: float = 0.5,
        low: float = 0.3,
        high: float = 0.7,
        overlap: float = 0.7,
    ):
        super().__init__()
        if len(strides) != len(sizes) or len({len(row) for row in sizes}) != 1:
            raise ValueError(
                f"every one of the {len(strides)} feature maps needs equally many anchor sizes, got {sizes}"
            )
        self.strides, self.sizes, self.ratios, self.counts = strides, sizes, ratios, counts
        self.per_image, self.share, self.low, self.high = per_image, share, low, high
        self.overlap = overlap
        self.head = RPNHead(channels, len(sizes[0]) * len(ratios))

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Anchors, logits and moves.

        Returns:
            For each feature map anchors (A, 4), logits (N, A) and moves (N, A, 4).
        """
        logits, moves = self.head(features)
        anchors = [
            B.anchors(own, self.ratios, stride, x.shape[2], x.shape[3], x.device)
            for own, stride, x in zip(self.sizes, self.strides, features, strict=True)
        ]
        return (
            anchors,
            [x.permute(0, 2, 3, 1).flatten(1) for x in logits],
            [x.reshape(len(x), -1, 4, *x.shape[-2:]).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in moves],
        )

    def losses(
        self,
        anchors: list[Tensor],
        logits: list[Tensor],
        moves: list[Tensor],
        targets: Sequence[Targets],
        draws: Sequence[torch.Generator],
    ) -> dict[str, Tensor]:
        """Classification and L1 distance, both per sampled anchor."""
        every, scores, shifts = torch.cat(anchors), torch.cat(logits, 1), torch.cat(moves, 1)
        classification = distance = scores.sum() * 0
        for row, shift, target, draw in zip(scores, shifts, targets, draws, strict=True):
            which, kind = B.match(target.boxes, every, self.low, self.high, keep_best=True)
            objects, background = B.sample(kind == 1, kind == 0, self.per_image, self.share, draw)
            chosen = torch.cat([objects, background])
            truth = torch.zeros_like(row[chosen])
            truth[: len(objects)] = 1
            classification = classification + F.binary_cross_entropy_with_logits(
                row[chosen], truth, reduction="sum"
            )
            if len(objects):
                goal = B.encode(target.boxes[which[objects]], every[objects], WEIGHTS)
                distance = distance + (shift[objects] - goal).abs().sum()
        sampled = self.per_image * len(targets)
        return {"rpn_class": classification / sampled, "rpn_box": distance / sampled}

    @torch.no_grad()
    def propose(
        self,
        anchors: list[Tensor],
        logits: list[Tensor],
        moves: list[Tensor],
        sizes: Sequence[tuple[int, int]],
    ) -> list[Float[Tensor, "R 4"]]:
        """The best boxes of each image, without duplicates, best first."""
        before, after = (
            (self.counts.train_before, self.counts.train_after)
            if self.training
            else (self.counts.test_before, self.counts.test_after)
        )
        kept: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in sizes]
        for level, (own, scores, shifts) in enumerate(zip(anchors, logits, moves, strict=True)):
            best, order = scores.sort(dim=1, descending=True, stable=True)
            for image, (score, rows, shift) in enumerate(
                zip(best[:, :before], order[:, :before], shifts, strict=True)
            ):
                found = B.clip(B.decode(shift[rows], own[rows], WEIGHTS), *sizes[image])
                good = B.nonempty(found) & score.isfinite()
                kept[image].append((found[good], score[good], torch.full_like(rows[good], level)))
        proposals = []
        for parts in kept:
            found, score, level_of = (torch.cat(values) for values in zip(*parts, strict=True))
            proposals.append(found[batched_nms(found, score, level_of, self.overlap)[:after]])
        return proposals
