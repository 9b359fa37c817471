"""Mean intersection over union of classes of pixels."""

from collections.abc import Sequence

import torch
from jaxtyping import Integer
from torch import Tensor

from moco.transfer.example import IGNORED_PIXEL


class Confusion:
    """How often pixels of each class were taken for each class, over many images.

    Args:
        classes: names in label order.
    """

    def __init__(self, classes: Sequence[str]):
        self.classes = tuple(classes)
        self.counts = torch.zeros(len(classes), len(classes), dtype=torch.long)

    def add(self, truth: Integer[Tensor, "H W"], found: Integer[Tensor, "H W"]) -> None:
        """Take in one image; pixels of true class 255 do not count.

        Raises:
            ValueError: if a true class number is neither a class nor 255.
        """
        counted = truth != IGNORED_PIXEL
        truth, found = truth[counted].long(), found[counted].long()
        size = len(self.classes)
        if truth.numel() and int(truth.max()) >= size:
            raise ValueError(f"class numbers must be below {size} or {IGNORED_PIXEL}, got {int(truth.max())}")
        self.counts += torch.bincount(truth * size + found, minlength=size * size).reshape(size, size).cpu()

    def take(self, other: "Confusion") -> None:
        """Take in the images that another one took in."""
        self.counts += other.counts

    def result(self) -> dict[str, float]:
        """Percentages: "mIoU" over classes that occur, "accuracy" of pixels, "IoU/CLASS"."""
        right = self.counts.diagonal().double()
        union = self.counts.sum(0) + self.counts.sum(1) - self.counts.diagonal()
        there = union > 0
        overlap = 100 * right[there] / union[there]
        names = [name for name, seen in zip(self.classes, there.tolist(), strict=True) if seen]
        total = max(int(self.counts.sum()), 1)
        table = {
            "mIoU": float(overlap.mean()) if len(names) else 0.0,
            "accuracy": 100 * float(right.sum()) / total,
        }
        return table | {f"IoU/{name}": value for name, value in zip(names, overlap.tolist(), strict=True)}
