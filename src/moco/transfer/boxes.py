"""Boxes: anchors, the numbers a network predicts about them, matching and sampling.

The conventions are those of the paper's stack (detectron2), in which one pixel covers a unit square.
Legend: M annotated boxes, A anchors, R boxes.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import box_iou

LARGEST_GROWTH = math.log(1000 / 16)
"""No prediction makes a box more than 62.5 times as wide or high as its reference."""


def anchors(
    sizes: Sequence[float],
    ratios: Sequence[float],
    stride: int,
    height: int,
    width: int,
    device: torch.device | None = None,
) -> Float[Tensor, "A 4"]:
    """Boxes of several sizes and shapes at every cell of a feature map.

    Args:
        sizes: square roots of the areas, in pixels.
        ratios: heights divided by widths.
        stride: pixels between cells.
        height, width: of the feature map.
        device: where they are made.

    Returns:
        In order of row, column, size, ratio; centred on multiples of the stride and not rounded.
    """
    shapes = [(size / math.sqrt(ratio), size * math.sqrt(ratio)) for size in sizes for ratio in ratios]
    around = torch.tensor([(-w / 2, -h / 2, w / 2, h / 2) for w, h in shapes], device=device)
    rows, columns = (stride * torch.arange(count, device=device) for count in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    corners = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
    return (corners + around).reshape(-1, 4)


def encode(
    boxes: Float[Tensor, "R 4"], reference: Float[Tensor, "R 4"], weights: tuple[float, float, float, float]
) -> Float[Tensor, "R 4"]:
    """What to predict about reference boxes to get these: shift over size, logarithm of growth."""
    (x, y, w, h), (rx, ry, rw, rh) = _centred(boxes), _centred(reference)
    moves = torch.stack([(x - rx) / rw, (y - ry) / rh, torch.log(w / rw), torch.log(h / rh)], dim=1)
    return moves * moves.new_tensor(weights)


def decode(
    moves: Float[Tensor, "R numbers"],
    reference: Float[Tensor, "R 4"],
    weights: tuple[float, float, float, float],
) -> Float[Tensor, "R numbers"]:
    """The inverse of `encode`, for one or several predictions about each reference box."""
    rx, ry, rw, rh = (part[:, None] for part in _centred(reference))
    dx, dy, dw, dh = (moves.unflatten(1, (moves.shape[1] // 4, 4)) / moves.new_tensor(weights)).unbind(-1)
    x, y = dx * rw + rx, dy * rh + ry
    w = dw.clamp(max=LARGEST_GROWTH).exp() * rw
    h = dh.clamp(max=LARGEST_GROWTH).exp() * rh
    return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1).reshape(moves.shape)


def _centred(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    left, top, right, bottom = boxes.unbind(1)
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def clip(boxes: Float[Tensor, "R numbers"], height: float, width: float) -> Float[Tensor, "R numbers"]:
    """Boxes cut off at the borders of the image."""
    limits = boxes.new_tensor([width, height, width, height])
    return boxes.unflatten(1, (boxes.shape[1] // 4, 4)).clamp(min=0).minimum(limits).reshape(boxes.shape)


def nonempty(boxes: Float[Tensor, "R 4"]) -> Bool[Tensor, " R"]:
    """Which boxes have an area."""
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def match(
    truth: Float[Tensor, "M 4"],
    boxes: Float[Tensor, "R 4"],
    low: float,
    high: float,
    *,
    keep_best: bool,
) -> tuple[Int[Tensor, " R"], Int[Tensor, " R"]]:
    """Which annotated box each box belongs to.

    Args:
        truth: annotated boxes.
        boxes: anchors or proposals.
        low, high: overlap (intersection over union) below which a box is background, and from which
            it is an object; between the two it is neither.
        keep_best: also make an object of the boxes that overlap an annotated box most, however little.

    Returns:
        For each box the number of an annotated box, and 1 object, 0 background or -1 neither.
        Without annotated boxes every box is background.
    """
    if not len(truth):
        nothing = torch.zeros(len(boxes), dtype=torch.long, device=boxes.device)
        return nothing, nothing.clone()
    overlap = box_iou(truth, boxes)
    best, which = overlap.max(0)
    kind = torch.full_like(which, -1)
    kind[best < low] = 0
    kind[best >= high] = 1
    if keep_best:
        kind[(overlap == overlap.max(1, keepdim=True).values).any(0)] = 1
    return which, kind


def sample(
    objects: Bool[Tensor, " R"],
    background: Bool[Tensor, " R"],
    count: int,
    share: float,
    draws: torch.Generator,
) -> tuple[Int[Tensor, " P"], Int[Tensor, " Q"]]:
    """A random choice of boxes to train on: at most `share` objects, filled up with background.

    Args:
        objects, background: the candidates.
        count: boxes to choose.
        share: largest part of them that are objects, in [0, 1].
        draws: a generator on the CPU, so that every device chooses the same.
    """
    wanted = int(count * share)
    chosen = _some(objects, wanted, draws)
    return chosen, _some(background, count - len(chosen), draws)


def _some(candidates: Tensor, count: int, draws: torch.Generator) -> Tensor:
    numbers = candidates.nonzero().flatten()
    return numbers[torch.randperm(len(numbers), generator=draws)[:count].to(numbers.device)]
