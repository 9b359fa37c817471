"""What a detector is given at one step, and what it is told about each image."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from moco.transfer.surface import Points


@dataclass(frozen=True)
class Targets:
    """The objects of one image after its transforms, in pixels of the network's input.

    Attributes:
        boxes: left, top, right, bottom.
        labels: class numbers from 0.
        masks: one image of 0 and 1 for each object.
        keypoints: x, y and visibility.
        points: DensePose points of each object, or nothing.
    """

    boxes: Float[Tensor, "M 4"]
    labels: Int[Tensor, " M"]
    masks: UInt8[Tensor, "M height width"] | None = None
    keypoints: Float[Tensor, "M joints 3"] | None = None
    points: tuple[Points | None, ...] = ()

    def to(self, device: torch.device) -> "Targets":
        """The same on a device."""
        return Targets(
            self.boxes.to(device),
            self.labels.to(device),
            None if self.masks is None else self.masks.to(device),
            None if self.keypoints is None else self.keypoints.to(device),
            tuple(None if points is None else points.to(device) for points in self.points),
        )


@dataclass(frozen=True)
class ImageList:
    """Normalised images of different sizes in one tensor, padded with zeros at the right and below."""

    pixels: Float[Tensor, "N channels height width"]
    sizes: tuple[tuple[int, int], ...]
    """Height and width of each before padding."""

    @staticmethod
    def stack(images: Sequence[Tensor], divisor: int = 1) -> "ImageList":
        """Pad images (channels, height, width) to the size of the largest, a multiple of the divisor."""
        sizes = tuple((image.shape[1], image.shape[2]) for image in images)
        height, width = (-(-max(extent) // divisor) * divisor for extent in zip(*sizes, strict=True))
        pixels = images[0].new_zeros(len(images), images[0].shape[0], height, width)
        for row, image in zip(pixels, images, strict=True):
            row[:, : image.shape[1], : image.shape[2]] = image
        return ImageList(pixels, sizes)

    def to(self, device: torch.device) -> "ImageList":
        """The same on a device."""
        return ImageList(self.pixels.to(device), self.sizes)


@dataclass(frozen=True)
class DetectionBatch:
    """A step's images, their objects, and the seeds of what is drawn for each image inside the network."""

    images: ImageList
    targets: tuple[Targets, ...]
    seeds: tuple[int, ...]

    def to(self, device: torch.device) -> "DetectionBatch":
        """The same on a device."""
        return DetectionBatch(
            self.images.to(device), tuple(target.to(device) for target in self.targets), self.seeds
        )

    def draws(self) -> list[torch.Generator]:
        """Fresh generators: the same images always give the same samples."""
        return [torch.Generator().manual_seed(seed) for seed in self.seeds]


@dataclass(frozen=True)
class SegmentationBatch:
    """A step's crops and a class number for each of their pixels; 255 counts nowhere."""

    images: ImageList
    labels: Int[Tensor, "N height width"]

    def to(self, device: torch.device) -> "SegmentationBatch":
        """The same on a device."""
        return SegmentationBatch(self.images.to(device), self.labels.to(device))
