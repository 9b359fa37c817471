"""Cityscapes as its owners ship it: `leftImg8bit/` and `gtFine/`, by split and city."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from moco.transfer.example import IGNORED_PIXEL, Example, Examples, Objects, as_boxes, require_files

THINGS = {
    24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle"
}  # fmt: skip
"""The eight classes with instances, by label id."""
STUFF = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky",
}  # fmt: skip
EVALUATED = {**STUFF, **THINGS}
"""The 19 classes of semantic segmentation, by label id."""
_PER_CLASS = 1000  # a pixel of the third car is 26 * 1000 + 2; of a crowd of cars, 26


def instances(root: str | Path, split: str) -> Examples:
    """Images with boxes and masks of the eight classes that have instances, from 16-bit instance files.

    Raises:
        FileNotFoundError: naming the file or folder that is wanted.
    """
    examples = []
    for image, path in _pairs(Path(root), split, "instanceIds"):
        numbers = instance_numbers(path)
        found = [int(n) for n in np.unique(numbers) if n >= _PER_CLASS and n // _PER_CLASS in THINGS]
        boxes = [_box(numbers == n) for n in found]
        labels = torch.tensor([list(THINGS).index(n // _PER_CLASS) for n in found], dtype=torch.long)
        nothing = torch.zeros(len(found), dtype=torch.bool)
        objects = Objects(as_boxes(boxes), labels, nothing, nothing, tuple(found))
        height, width = numbers.shape
        examples.append(Example(image, _stem(image), height, width, objects, instances=path))
    folder = Path(root) / "gtFine" / split
    return Examples(f"Cityscapes {split}", tuple(THINGS.values()), tuple(examples), folder)


def semantic(root: str | Path, split: str) -> Examples:
    """Images with one of 19 classes for each pixel; other label ids count as void.

    Raises:
        FileNotFoundError: naming the file or folder that is wanted.
    """
    examples = []
    for image, path in _pairs(Path(root), split, "labelIds"):
        with Image.open(path) as mask:
            width, height = mask.size
        examples.append(Example(image, _stem(image), height, width, semantic=path))
    classes = [EVALUATED[label] for label in sorted(EVALUATED)]
    lookup = [IGNORED_PIXEL] * 256
    for number, label in enumerate(sorted(EVALUATED)):
        lookup[label] = number
    folder = Path(root) / "gtFine" / split
    return Examples(f"Cityscapes {split}", tuple(classes), tuple(examples), folder, lookup=tuple(lookup))


def instance_numbers(path: Path) -> np.ndarray:
    """An instance file as int32, which holds 16-bit numbers that torch cannot sort."""
    with Image.open(path) as image:
        return np.asarray(image).astype(np.int32)


def _pairs(root: Path, split: str, kind: str) -> list[tuple[Path, Path]]:
    folder = root / "leftImg8bit" / split
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no {folder}; --data takes the folder of leftImg8bit and gtFine")
    images = sorted(folder.glob("*/*_leftImg8bit.png"))
    if not images:
        raise FileNotFoundError(f"there is no CITY/*_leftImg8bit.png in {folder}")
    labels = [root / "gtFine" / split / i.parent.name / f"{_stem(i)}_gtFine_{kind}.png" for i in images]
    require_files(labels, f"Cityscapes {split}")
    return list(zip(images, labels, strict=True))


def _stem(image: Path) -> str:
    return image.name.removesuffix("_leftImg8bit.png")


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
