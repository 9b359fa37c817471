"""PASCAL VOC as its owners ship it: boxes for detection, class masks for segmentation, SBD's additions."""

import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import torch
from PIL import Image

from moco.transfer.example import IGNORED_PIXEL, Example, Examples, Objects, as_boxes, require_files

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

_ORIENTATION, _ON_ITS_SIDE = 274, range(5, 9)  # EXIF's tag, and its values that swap the sides


def detection(root: str | Path, splits: tuple[str, ...]) -> Examples:
    """Images with boxes, of VOC's classes, or of those in `classes.txt` where a year has one.

    Args:
        root: the folder of VOCdevkit, or VOCdevkit itself.
        splits: such as ("VOC2007:trainval", "VOC2012:trainval").

    Raises:
        FileNotFoundError: naming the file that is wanted.
        ValueError: if an annotation names a class that is not there, or has no image size or box, or the
            years have other classes.
    """
    sets = [_detection(Path(root), *_year(split)) for split in splits]
    joined = sets[0]
    for other in sets[1:]:
        joined = joined.join(other)
    return joined


def segmentation(root: str | Path, split: str, classes: tuple[str, ...] | None = None) -> Examples:
    """Images with a class number for each pixel: 0 background, 255 void.

    Args:
        root: the folder of VOCdevkit, VOCdevkit itself, or any folder of that layout without years.
        split: such as "VOC2012:val"; "VOC2012:train_aug" takes `ImageSets/Segmentation/train_aug.txt`
            and masks from `SegmentationClassAug`, the 10,582 images that SBD's masks make of VOC 2012;
            "train" takes a layout without years.
        classes: names in label order; None takes `classes.txt` where there is one, else VOC's and background.

    Raises:
        FileNotFoundError: naming the file that is wanted.
        ValueError: if a mask is not of the size of its image, as that is shown.
    """
    year, name = _year(split) if ":" in split else ("", split)
    folder = _home(Path(root), year) if year else Path(root)
    ids = _ids(folder / "ImageSets/Segmentation" / f"{name}.txt")
    masks = folder / ("SegmentationClassAug" if name.endswith("_aug") else "SegmentationClass")
    if classes is None:
        names = folder / "classes.txt"
        classes = _names(names) if names.is_file() else ("background", *CLASSES)
    images = [folder / "JPEGImages" / f"{i}.jpg" for i in ids]
    labels = [masks / f"{i}.png" for i in ids]
    require_files(images + labels, f"{split} of {folder}")
    examples = []
    for image_id, image, label in zip(ids, images, labels, strict=True):
        width, height = _size(image)
        if _size(label) != (width, height):
            raise ValueError(f"{label} is not of the size of its image, {width} x {height}")
        examples.append(Example(image, image_id, height, width, semantic=label))
    return Examples(f"{folder.name} {name}", classes, tuple(examples), folder)


def _detection(root: Path, year: str, name: str) -> Examples:
    folder = _home(root, year)
    names = folder / "classes.txt"  # which may begin with segmentation's background
    classes = tuple(n for n in _names(names) if n != "background") if names.is_file() else CLASSES
    ids = _ids(folder / "ImageSets/Main" / f"{name}.txt")
    images = [folder / "JPEGImages" / f"{i}.jpg" for i in ids]
    annotations = [folder / "Annotations" / f"{i}.xml" for i in ids]
    require_files(images + annotations, f"{year} {name}")
    examples = tuple(
        _read(image, annotation, image_id, classes)
        for image, annotation, image_id in zip(images, annotations, ids, strict=True)
    )
    return Examples(f"{year} {name}", classes, examples, folder)


def _read(image: Path, annotation: Path, image_id: str, classes: tuple[str, ...]) -> Example:
    boxes, labels, difficult = [], [], []
    try:
        tree = ET.parse(annotation).getroot()
        width, height = (int(float(_text(tree, f"size/{side}"))) for side in ("width", "height"))
        if not width or not height:  # what some tools write who do not know it
            width, height = _size(image)
        for thing in tree.iter("object"):
            if (name := _text(thing, "name")) not in classes:
                raise ValueError(
                    f"unknown class {name!r}; there are {', '.join(classes)}. Other classes are named in "
                    "classes.txt beside Annotations, one in a line"
                )
            left, top, right, bottom = (
                float(_text(thing, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")
            )
            if not (left <= right < math.inf and top <= bottom < math.inf):
                raise ValueError(
                    f"a {name} has the empty box xmin {left:g}, ymin {top:g}, xmax {right:g}, ymax {bottom:g}"
                )
            boxes.append([left - 1, top - 1, right, bottom])  # 1-based and inclusive in the file
            labels.append(classes.index(name))
            difficult.append((thing.findtext("difficult") or "").strip().lower() in ("1", "true"))
    except (ET.ParseError, ValueError) as error:
        raise ValueError(f"{annotation}: {error}") from None
    objects = Objects(
        as_boxes(boxes),
        torch.tensor(labels, dtype=torch.long),
        torch.zeros(len(labels), dtype=torch.bool),  # difficult objects are trained on, crowds are not marked
        torch.tensor(difficult, dtype=torch.bool),
    )
    return Example(image, image_id, height, width, objects)


def _text(element: ET.Element, path: str) -> str:
    if (text := element.findtext(path)) is None:
        raise ValueError(f"an {element.tag} has no {path}")
    return text.strip()


def _year(split: str) -> tuple[str, str]:
    year, colon, name = split.partition(":")
    if not colon or not name:
        raise ValueError(f"a split of VOC is written YEAR:NAME, such as VOC2007:trainval, got {split!r}")
    return year, name


def _home(root: Path, year: str) -> Path:
    for folder in (root / "VOCdevkit" / year, root / year):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"there is no {root / 'VOCdevkit' / year}; --data takes the folder of VOCdevkit")


def _ids(path: Path) -> list[str]:
    require_files([path], "list of images")
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} names no image")
    marked = all(re.search(r"\s(-1|0|1)$", line) for line in lines)  # the lists of single classes
    return [line.rsplit(maxsplit=1)[0] for line in lines] if marked else lines


def _names(path: Path) -> tuple[str, ...]:
    """Names of classes, one in a line, after their number where there is one; 255 is no class."""
    lines = [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    numbered = all(len(line) > 1 and line[0].isdigit() for line in lines)
    if not numbered:
        return tuple(" ".join(line) for line in lines)
    names = {int(line[0]): " ".join(line[1:]) for line in lines if int(line[0]) != IGNORED_PIXEL}
    if sorted(names) != list(range(len(names))):
        raise ValueError(f"{path} must number the classes from 0 without gaps, got {sorted(names)}")
    return tuple(names[number] for number in sorted(names))


def _size(path: Path) -> tuple[int, int]:
    """Width and height of what is shown: images are decoded upright."""
    with Image.open(path) as image:
        return image.size[::-1] if image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE else image.size
