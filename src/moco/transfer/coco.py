"""COCO, LVIS and DensePose annotation files: images with boxes, shapes, joints and body surfaces."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from moco.transfer.example import Example, Examples, Objects, as_boxes, no_objects, require_files
from moco.transfer.shapes import SMALLEST_POLYGON
from moco.transfer.surface import BACKGROUND, PARTS

_JOINTS = 17
SURFACE_FIELDS = ("dp_masks", "dp_x", "dp_y", "dp_I", "dp_U", "dp_V")


def read(
    annotations: str | Path, images: str | Path, *, keypoints: bool = False, masks: bool = False
) -> Examples:
    """The images of an annotation file.

    Args:
        annotations: a JSON file in COCO's, LVIS's or DensePose's form.
        images: folder of the image files; LVIS names a file by its `coco_url` or by folder and file.
        keypoints: also read joints; only classes that have joints are kept.
        masks: every annotation must have an outline.

    Raises:
        FileNotFoundError: naming the file that is wanted.
        ValueError: if the file is no such file, two images or two classes have one number, an image or a
            class lacks what is needed of it, or an annotation names an unknown image or class, has no box,
            or has no outline where masks are wanted; the message has the number of image, class or
            annotation.
    """
    annotations, images = Path(annotations), Path(images)
    require_files([annotations], "annotations")
    try:
        content = json.loads(annotations.read_text(encoding="utf-8"))
        entries, categories = content["images"], content["categories"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{annotations} is no annotation file in COCO's form: {error!r}") from None
    _require(entries, "image", ("height", "width"), annotations)
    _require(categories, "category", ("name",), annotations)
    categories = sorted(categories, key=lambda category: category["id"])
    jointless = {category["id"] for category in categories if keypoints and not category.get("keypoints")}
    if keypoints:
        categories = [category for category in categories if category.get("keypoints")]
        if len(categories) != 1:
            raise ValueError(f"{annotations} must have one class with keypoints, it has {len(categories)}")
    labels = {category["id"]: number for number, category in enumerate(categories)}
    joints = len(categories[0]["keypoints"]) if keypoints else 0
    if joints not in (0, _JOINTS):
        raise ValueError(
            f"{annotations} has {joints} keypoints for each object; the metric's tolerances are those of "
            f"COCO's {_JOINTS}"
        )
    by_image: dict[Any, list[dict[str, Any]]] = {entry["id"]: [] for entry in entries}
    for annotation in content.get("annotations") or ():
        if annotation.get("category_id") in jointless:
            continue
        _check(annotation, by_image, labels, joints, masks, annotations)
        by_image[annotation["image_id"]].append(annotation)
    paths = [images / _file_name(entry, images, annotations) for entry in entries]
    require_files(paths, f"images of {annotations.name}")
    examples = tuple(
        Example(
            path,
            entry["id"],
            entry["height"],
            entry["width"],
            _objects(by_image[entry["id"]], labels, joints),
        )
        for path, entry in zip(paths, entries, strict=True)
    )
    return Examples(
        annotations.stem,
        tuple(category["name"] for category in categories),
        examples,
        annotations,
        category_ids=tuple(labels),
        joints=joints,
        mirrored=_mirrored(categories[0]["keypoints"]) if keypoints else (),
        frequency=tuple(category.get("frequency", "") for category in categories),
    )


def coco(root: str | Path, split: str, *, kind: str = "instances", masks: bool = False) -> Examples:
    """COCO as its owners ship it: `SPLIT/` beside `annotations/KIND_SPLIT.json`.

    Args:
        root: folder of both.
        split: such as "train2017".
        kind: "instances", "person_keypoints" or "densepose_coco_2014".
        masks: see `read`.

    Raises:
        FileNotFoundError, ValueError: see `read`.
    """
    root = Path(root)
    images = root / split
    if kind == "densepose_coco_2014":  # its splits divide COCO 2014's two folders anew
        images = root / ("train2014" if "train" in split else "val2014")
    file = root / "annotations" / f"{kind}_{split}.json"
    return read(file, images, keypoints=kind == "person_keypoints", masks=masks)


def lvis(root: str | Path, split: str, *, masks: bool = False) -> Examples:
    """LVIS v0.5: `annotations/lvis_SPLIT.json` over COCO 2017's folders of images.

    Args:
        root: folder of `annotations/`, `train2017/` and `val2017/`.
        split: such as "v0.5_train".
        masks: see `read`.

    Raises:
        FileNotFoundError, ValueError: see `read`.
    """
    root = Path(root)
    images = root / ("val2017" if split.endswith("val") else "train2017")
    return read(root / "annotations" / f"lvis_{split}.json", images, masks=masks)


def _require(rows: Sequence[dict[str, Any]], what: str, fields: tuple[str, ...], file: Path) -> None:
    """Refuse images or categories that share a number, or lack a field."""
    seen = set()
    for row in rows:
        for name in ("id", *fields):
            if row.get(name) is None:
                raise ValueError(f"{file}: {what} {row.get('id')} has no {name}")
        if row["id"] in seen:
            raise ValueError(
                f"{file}: {what} {row['id']!r} is there twice; annotations would belong to both of them"
            )
        seen.add(row["id"])


def _check(
    annotation: dict[str, Any],
    by_image: dict[Any, Any],
    labels: dict[int, int],
    joints: int,
    masks: bool,
    file: Path,
) -> None:
    name = f"{file}: annotation {annotation.get('id')}"
    if annotation.get("image_id") not in by_image:
        raise ValueError(f"{name} names image {annotation.get('image_id')!r}, which is not in the file")
    if annotation.get("category_id") not in labels:
        raise ValueError(f"{name} has category {annotation.get('category_id')!r}, which is not in the file")
    box = annotation.get("bbox")
    numbers = box if isinstance(box, list) and all(isinstance(v, int | float) for v in box) else []
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} must have a bbox of four numbers, got {box}")
    if joints and len(annotation.get("keypoints", [])) not in (0, 3 * joints):
        raise ValueError(f"{name} must have {3 * joints} numbers for {joints} keypoints")
    if masks and not has_outline(annotation.get("segmentation")):
        raise ValueError(
            f"{name} has no segmentation to learn masks from, as a list of polygons or a run length; boxes "
            "alone take --heads.no-masks"
        )
    if "dp_x" in annotation:
        _check_surface(annotation, name)


def _check_surface(annotation: dict[str, Any], name: str) -> None:
    """Refuse points of a body that lack a field, or are of a part that no body has."""
    if missing := [field for field in SURFACE_FIELDS if annotation.get(field) is None]:
        raise ValueError(f"{name} has dp_x but no {missing[0]}")
    counts = {len(annotation[field]) for field in SURFACE_FIELDS if field != "dp_masks"}
    if len(counts) > 1:
        raise ValueError(
            f"{name} must have as many of each of dp_x, dp_y, dp_I, dp_U and dp_V, got {sorted(counts)}"
        )
    for part in annotation["dp_I"]:
        if part not in BACKGROUND and part not in range(1, PARTS + 1):
            raise ValueError(
                f"{name} has a point of part {part:g}; dp_I holds parts 1 to {PARTS}, and 0 or 255 where "
                "there is no body"
            )


def has_outline(shape: Any) -> bool:
    """Whether there is a polygon of at least three corners or a run length."""
    if isinstance(shape, dict):
        return bool(shape.get("counts"))
    return any(isinstance(part, list) and len(part) >= SMALLEST_POLYGON for part in shape or ())


def _objects(found: list[dict[str, Any]], labels: dict[int, int], joints: int) -> Objects:
    if not found:
        return no_objects(joints)
    boxes = [(x, y, x + w, y + h) for x, y, w, h in (annotation["bbox"] for annotation in found)]
    crowds = torch.tensor([bool(int(annotation.get("iscrowd") or 0)) for annotation in found])
    keypoints = None
    if joints:
        rows = [annotation.get("keypoints") or [0] * (3 * joints) for annotation in found]
        keypoints = torch.tensor(rows, dtype=torch.float32).reshape(len(found), joints, 3)
        keypoints[:, :, :2] += 0.5  # the file numbers pixels, whose centres lie half a pixel further
    surfaces = tuple(
        {name: annotation[name] for name in SURFACE_FIELDS}
        if any(part not in BACKGROUND for part in annotation.get("dp_I") or ())
        else None
        for annotation in found
    )
    return Objects(
        as_boxes(boxes),
        torch.tensor([labels[annotation["category_id"]] for annotation in found], dtype=torch.long),
        crowds,
        torch.zeros(len(found), dtype=torch.bool),
        tuple(annotation.get("segmentation") or None for annotation in found),
        keypoints,
        surfaces if any(surface is not None for surface in surfaces) else (),
    )


def _file_name(entry: dict[str, Any], images: Path, file: Path) -> str:
    """COCO says `file_name`; LVIS v1 only `coco_url`; LVIS v0.5 writes COCO 2014's long names."""
    name = entry.get("file_name") or (entry.get("coco_url") or "").rpartition("/")[2]
    if not name:
        raise ValueError(f"{file}: image {entry['id']} has no file_name")
    short = name.rpartition("_")[2]
    long = name.startswith("COCO_") and not (images / name).is_file()  # other names are taken as they are
    return short if long and (images / short).is_file() else name


def _mirrored(names: list[str]) -> tuple[int, ...]:
    """For each joint the one with "left" and "right" exchanged in its name."""
    swapped = [name.replace("left", "?").replace("right", "left").replace("?", "right") for name in names]
    return tuple(names.index(other) if other in names else here for here, other in enumerate(swapped))
