"""Annotated images, whatever layout they come in: one kind of example for every task."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

IGNORED_PIXEL = 255


@dataclass(frozen=True)
class Objects:
    """The M objects of one image, in pixels of the file; the pixel (0, 0) covers [0, 1] x [0, 1].

    Attributes:
        boxes: left, top, right, bottom.
        labels: class numbers from 0.
        skipped: objects no detector is trained on (crowds).
        difficult: objects that evaluation passes over (VOC).
        shapes: for each object polygons or a run-length encoding as COCO has them, or nothing.
        keypoints: x, y and visibility (0 not labelled, 1 hidden, 2 visible) of each joint.
        surfaces: for each object the DensePose fields of its annotation, or nothing.
    """

    boxes: Float[Tensor, "M 4"]
    labels: Int[Tensor, " M"]
    skipped: Bool[Tensor, " M"]
    difficult: Bool[Tensor, " M"]
    shapes: tuple[Any, ...] = ()
    keypoints: Float[Tensor, "M joints 3"] | None = None
    surfaces: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Example:
    """One image file and what is known about it.

    Attributes:
        path: of the image.
        image_id: as the data set's own files call it.
        height, width: in pixels.
        objects: for detection; None for semantic segmentation.
        semantic: file with a class number for every pixel; None for detection.
        instances: file with an instance number for every pixel (Cityscapes), where masks come from one.
    """

    path: Path
    image_id: int | str
    height: int
    width: int
    objects: Objects | None = None
    semantic: Path | None = None
    instances: Path | None = None


@dataclass(frozen=True)
class Examples:
    """The examples of one split.

    Attributes:
        name: of data set and split.
        classes: names in label order.
        examples: the images.
        source: the annotation file or folder, which some evaluators read again.
        category_ids: for each label the number the annotation file has for it; empty where there is none.
        joints: how many keypoints an object has.
        mirrored: for each joint the one it becomes in a mirror.
        lookup: for each pixel value of semantic files the label; None takes them as they are.
        frequency: for each label "r", "c" or "f" (LVIS).
    """

    name: str
    classes: tuple[str, ...]
    examples: tuple[Example, ...]
    source: Path
    category_ids: tuple[int | float | str, ...] = ()
    joints: int = 0
    mirrored: tuple[int, ...] = ()
    lookup: tuple[int, ...] | None = None
    frequency: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    def only(self, keep: Callable[[Example], bool], why: str) -> "Examples":
        """The examples worth keeping.

        Raises:
            ValueError: if none is.
        """
        kept = tuple(example for example in self.examples if keep(example))
        if not kept:
            raise ValueError(f"{self.name}: none of its {len(self):,} images {why}")
        return replace(self, examples=kept)

    def join(self, other: "Examples") -> "Examples":
        """Both splits as one, such as VOC 2007 and 2012.

        Raises:
            ValueError: if their classes differ.
        """
        if self.classes != other.classes:
            raise ValueError(f"{self.name} and {other.name} do not have the same classes")
        name = f"{self.name} + {other.name}"
        return replace(self, name=name, examples=self.examples + other.examples)

    def fingerprint(self) -> str:
        """A digest of what is annotated and of the sizes of all files, by which changed data is known.

        Of an annotation file every byte counts; of images and label files no pixel is read.
        """
        digest = hashlib.sha256(repr((self.name, self.classes)).encode())
        if self.source.is_file():
            with self.source.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        for one in self.examples:
            files = (one.path, one.semantic, one.instances)
            sizes = [file.stat().st_size for file in files if file is not None]
            digest.update(repr((one.image_id, one.height, one.width, sizes)).encode())
            if one.objects is not None:
                parts = (one.objects.boxes, one.objects.labels, one.objects.skipped, one.objects.difficult)
                for part in parts:
                    digest.update(part.numpy().tobytes())
        return digest.hexdigest()[:16]


def has_objects(example: Example) -> bool:
    """Whether a detector can learn from the image: it shows an object that is no crowd."""
    return example.objects is not None and bool((~example.objects.skipped).any())


def has_keypoints(example: Example) -> bool:
    """Whether an object of the image that is no crowd has a labelled joint."""
    objects = example.objects
    if objects is None or objects.keypoints is None:
        return False
    return bool(((objects.keypoints[:, :, 2] > 0).any(1) & ~objects.skipped).any())


def has_surfaces(example: Example) -> bool:
    """Whether an object of the image has DensePose points."""
    return example.objects is not None and any(surface is not None for surface in example.objects.surfaces)


def no_objects(joints: int = 0) -> Objects:
    """An image in which nothing is annotated."""
    nothing = torch.zeros(0, dtype=torch.bool)
    keypoints = torch.zeros(0, joints, 3) if joints else None
    return Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), nothing, nothing, (), keypoints)


def require_files(paths: Sequence[Path], what: str) -> None:
    """Refuse a data set whose files are not there, naming the first few.

    Raises:
        FileNotFoundError: naming them.
    """
    missing = [path for path in paths if not path.is_file()]
    if missing:
        shown = ", ".join(str(path) for path in missing[:3])
        more = f" and {len(missing) - 3:,} more" if len(missing) > 3 else ""
        raise FileNotFoundError(f"{what}: there is no {shown}{more}")


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image, in pixels of the file, best first.

    Attributes:
        boxes, scores, labels: of the D detections.
        masks: a Boolean image each.
        keypoints: x, y and score of each joint.
        surfaces: for each detection part numbers and U, V inside its box (see `moco.transfer.densepose`).
    """

    boxes: Float[Tensor, "D 4"]
    scores: Float[Tensor, " D"]
    labels: Int[Tensor, " D"]
    masks: Bool[Tensor, "D height width"] | None = None
    keypoints: Float[Tensor, "D joints 3"] | None = None
    surfaces: tuple[Any, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.scores)

    def cpu(self) -> "Detections":
        """The same on the CPU."""
        masks = None if self.masks is None else self.masks.cpu()
        keypoints = None if self.keypoints is None else self.keypoints.cpu()
        surfaces = tuple(replace(one, parts=one.parts.cpu(), uv=one.uv.cpu()) for one in self.surfaces)
        return Detections(self.boxes.cpu(), self.scores.cpu(), self.labels.cpu(), masks, keypoints, surfaces)


def as_boxes(rows: Sequence[Sequence[float]]) -> Float[Tensor, "M 4"]:
    """Rows of four numbers as boxes, also when there are none."""
    return torch.from_numpy(np.asarray(rows, dtype=np.float32).reshape(-1, 4))
