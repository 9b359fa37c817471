"""Images and their annotations resized, mirrored and cropped together, each draw keyed by step and image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from moco.transfer import boxes as B
from moco.transfer.batch import Targets
from moco.transfer.cityscapes import instance_numbers
from moco.transfer.example import IGNORED_PIXEL, Example, Examples
from moco.transfer.shapes import rasterise
from moco.transfer.surface import Points, Symmetry, read_points


@dataclass(frozen=True)
class Sizes:
    """What images are resized to.

    Attributes:
        short: short sides, one of which is drawn for each training image.
        longest: limit of the long side, which comes before the short side.
    """

    short: tuple[int, ...]
    longest: int

    def of(self, height: int, width: int, draw: float) -> tuple[int, int]:
        """Height and width after resizing; `draw` in (0, 1) chooses the short side."""
        factor = self.short[int(draw * len(self.short))] / min(height, width)
        factor = min(factor, self.longest / max(height, width))
        return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


@dataclass(frozen=True)
class Wanted:
    """Which annotations a task needs.

    Attributes:
        masks, keypoints, surfaces: prepare these.
        symmetry: of the body surface; without it images with surfaces are not mirrored.
    """

    masks: bool = False
    keypoints: bool = False
    surfaces: bool = False
    symmetry: Symmetry | None = None


def resized(image: UInt8[Tensor, "3 H W"], height: int, width: int) -> Tensor:
    """An image at another size, antialiased."""
    return F.resize(image, [height, width], antialias=True)


def for_detection(
    image: UInt8[Tensor, "3 H W"],
    example: Example,
    examples: Examples,
    sizes: Sizes,
    wanted: Wanted,
    draws: Sequence[float],
) -> tuple[Tensor, Targets]:
    """A training image and its objects, resized, and mirrored with probability one half.

    Crowds are left out, boxes are cut off at the borders, and objects of which nothing is left go.

    Args:
        image: as decoded.
        example: its annotations.
        examples: the split it comes from.
        sizes: to choose from.
        wanted: annotations to prepare.
        draws: two uniform numbers: the size, the mirror.
    """
    assert example.objects is not None
    height, width = image.shape[1:]
    new_height, new_width = sizes.of(height, width, draws[0])
    mirror = draws[1] < 0.5 and not (wanted.surfaces and wanted.symmetry is None)
    objects = example.objects
    rows = ~objects.skipped
    found = tv_tensors.BoundingBoxes(objects.boxes[rows], format="XYXY", canvas_size=(height, width))
    found = F.resize(found, [new_height, new_width])
    picture = resized(image, new_height, new_width)
    if mirror:
        picture, found = F.horizontal_flip(picture), F.horizontal_flip(found)
    clipped = B.clip(found.as_subclass(torch.Tensor), new_height, new_width)
    keep = B.nonempty(clipped)
    numbers = rows.nonzero().flatten()[keep].tolist()
    masks = keypoints = None
    if wanted.masks:
        masks = _masks(example, numbers, (height, width), (new_height, new_width), mirror)
    if wanted.keypoints:
        assert objects.keypoints is not None
        keypoints = objects.keypoints[numbers].clone()
        keypoints[:, :, 0] *= new_width / width
        keypoints[:, :, 1] *= new_height / height
        if mirror:  # a mirrored left elbow is a right one
            keypoints[:, :, 0] = new_width - keypoints[:, :, 0]
            keypoints = keypoints[:, list(examples.mirrored)]
    points: tuple[Points | None, ...] = ()
    if wanted.surfaces:
        points = tuple(read_points(objects.surfaces[n] if objects.surfaces else None) for n in numbers)
        if mirror:
            assert wanted.symmetry is not None
            points = tuple(None if one is None else wanted.symmetry.mirrored(one) for one in points)
    return picture, Targets(clipped[keep], objects.labels[numbers], masks, keypoints, points)


def _masks(
    example: Example, numbers: list[int], size: tuple[int, int], new: tuple[int, int], mirror: bool
) -> UInt8[Tensor, "M height width"]:
    assert example.objects is not None
    if not numbers:
        return torch.zeros(0, *new, dtype=torch.uint8)
    if example.instances is not None:
        whole = torch.from_numpy(instance_numbers(example.instances))
        masks = torch.stack([(whole == example.objects.shapes[n]).to(torch.uint8) for n in numbers])
    else:
        masks = torch.stack([rasterise(example.objects.shapes[n], *size) for n in numbers])
    masks = F.resize(tv_tensors.Mask(masks), list(new))
    return (F.horizontal_flip(masks) if mirror else masks).as_subclass(torch.Tensor)


def label_image(example: Example, examples: Examples) -> UInt8[Tensor, "H W"]:
    """The class numbers in an example's semantic file.

    Args:
        example: an image of a segmentation split.
        examples: the split.

    Raises:
        ValueError: if it holds more than 8 bits or colours, or the number of a class that is not there.
    """
    path = example.semantic
    assert path is not None
    with Image.open(path) as image:
        if image.mode not in ("P", "L"):
            raise ValueError(f"{path} must hold one class number per pixel, it has mode {image.mode}")
        labels = np.array(image)
    if examples.lookup is not None:
        labels = np.array(examples.lookup, dtype=np.uint8)[labels]
    count = len(examples.classes)
    wrong = labels[(labels >= count) & (labels != IGNORED_PIXEL)]
    if len(wrong):
        raise ValueError(
            f"{path} has a pixel of class {wrong[0]}, but {examples.name} has {count} classes, numbered from "
            f"0; name every class in {examples.source / 'classes.txt'}, or write {IGNORED_PIXEL} where there "
            "is none"
        )
    return torch.from_numpy(labels)


def for_segmentation(
    image: Float[Tensor, "3 H W"],
    labels: UInt8[Tensor, "H W"],
    crop: int,
    scales: tuple[float, float],
    draws: Sequence[float],
) -> tuple[Float[Tensor, "3 crop crop"], Int[Tensor, "crop crop"]]:
    """A training crop: randomly scaled, mirrored and cut out; what lies outside is zero and void.

    Args:
        image: normalised, so that zero is the mean colour.
        labels: class numbers.
        crop: side of the result.
        scales: smallest and largest factor.
        draws: four uniform numbers: the scale, the mirror, the place.

    Source: MoCo, appendix A.5: scale in [0.5, 2], crops of 513 (VOC) or 769 (Cityscapes).
    """
    factor = scales[0] + (scales[1] - scales[0]) * draws[0]
    size = [max(1, round(extent * factor)) for extent in image.shape[1:]]
    image = F.resize(image, size, antialias=True)
    mask = F.resize(tv_tensors.Mask(labels), size).as_subclass(torch.Tensor)
    if draws[1] < 0.5:
        image, mask = image.flip(-1), mask.flip(-1)
    top, left = (
        int(draw * (max(extent - crop, 0) + 1)) for draw, extent in zip(draws[2:], size, strict=True)
    )
    image, mask = image[:, top : top + crop, left : left + crop], mask[top : top + crop, left : left + crop]
    picture = image.new_zeros(3, crop, crop)
    truth = torch.full((crop, crop), IGNORED_PIXEL, dtype=torch.long)
    picture[:, : image.shape[1], : image.shape[2]] = image
    truth[: mask.shape[0], : mask.shape[1]] = mask
    return picture, truth
