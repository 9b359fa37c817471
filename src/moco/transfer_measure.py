"""What a fine-tuned network is worth on the test split of its task."""

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from moco.transfer import cityscapes_metrics, coco_metrics, surface_metrics, voc_metrics
from moco.transfer.detector import Detector
from moco.transfer.example import Detections, Example, Examples
from moco.transfer.loader import Pixels, evaluation_images
from moco.transfer.pixel_metrics import Confusion
from moco.transfer.segmentation import Segmenter
from moco.transfer.shapes import coco_masks
from moco.transfer.transforms import Sizes, label_image
from moco.transfer_build import read_image, scaled
from moco.transfer_recipe import TransferRecipe
from moco.world import World


@dataclass
class Measured:
    """What a measurement gives.

    Attributes:
        table: percentages by name; names with a slash are those of single classes.
        rows: detections in COCO's result form, by kind, where the data is COCO's.
        shown: the first images and what was found in them.
    """

    table: dict[str, float] = field(default_factory=dict)
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    shown: list[tuple[Example, Any]] = field(default_factory=list)


class Judge(Protocol):
    """Takes in images one by one; what others took in can be added."""

    def take(self, other: Any) -> None: ...

    def result(self) -> dict[str, float]: ...


@dataclass
class Part:
    """What was found in consecutive images of a split; parts taken in order are the whole.

    Attributes:
        rows: detections in COCO's result form, by kind.
        boxes: detections of each image, where VOC's metric wants them.
        judges: what compares while images pass, by what its percentages are called.
        shown: place in the split and findings of images to look at.
    """

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    boxes: list[Detections] = field(default_factory=list)
    judges: dict[str, Judge] = field(default_factory=dict)
    shown: list[tuple[int, Any]] = field(default_factory=list)

    def take(self, other: "Part") -> None:
        """Add the part that comes next."""
        for kind, rows in self.rows.items():
            rows += other.rows[kind]
        self.boxes += other.boxes
        for name, judge in self.judges.items():
            judge.take(other.judges[name])
        self.shown += other.shown


def require_tools(values: TransferRecipe) -> None:
    """Refuse before any work what would fail after all of it.

    Raises:
        ModuleNotFoundError: if COCO's metrics are needed and faster-coco-eval is not there.
        FileNotFoundError: if a file of the body is missing.
    """
    if values.layout in ("coco", "keypoints", "densepose", "lvis") or values.heads.masks:
        coco_masks()
    if values.geodesic:
        surface_metrics.Body.read(values.geodesic)


def measure(
    values: TransferRecipe,
    model: Detector | Segmenter,
    examples: Examples,
    pixels: Pixels,
    device: torch.device,
    world: World,
    *,
    pictures: int = 8,
) -> Measured:
    """Run a network over a split, one image at a time, and compare with the annotations.

    Each process takes a share of the images; the table is the same on all, the rest is on the first.

    Args:
        values: the recipe, which knows test sizes and the metric.
        model: in any mode; it is in evaluation mode afterwards.
        examples: the split.
        pixels: normalisation.
        device: where the model is.
        world: the processes.
        pictures: images to keep for looking at.

    Raises:
        RuntimeError: if an image cannot be read.
        ModuleNotFoundError: if COCO's metrics are needed and faster-coco-eval is not there.
    """
    model.eval()
    share = slice(*(len(examples) * edge // world.size for edge in (world.rank, world.rank + 1)))
    if isinstance(model, Segmenter):
        own = _pixels(model, examples, share, pixels, device, pictures)
    else:
        own = _objects(values, model, examples, share, pixels, device, pictures)
    parts = world.assemble(own)
    for part in parts[1:]:
        parts[0].take(part)
    table = world.first(lambda: _table(values, examples, parts[0]))
    if not parts:
        return Measured(table)
    shown = [(examples.examples[place], found) for place, found in parts[0].shown]
    return Measured(table, parts[0].rows, shown)


def _pixels(
    model: Segmenter,
    examples: Examples,
    share: slice,
    pixels: Pixels,
    device: torch.device,
    pictures: int,
) -> Part:
    confusion = Confusion(examples.classes)
    part = Part(judges={"": confusion})
    chosen = replace(examples, examples=examples.examples[share])
    for place, (example, images) in enumerate(
        evaluation_images(chosen, read_image, pixels, None), share.start
    ):
        found = model.classes_of(images.to(device), [(example.height, example.width)])[0].cpu()
        confusion.add(label_image(example, examples), found)
        if place < pictures:
            part.shown.append((place, found))
    return part


def _objects(
    values: TransferRecipe,
    model: Detector,
    examples: Examples,
    share: slice,
    pixels: Pixels,
    device: torch.device,
    pictures: int,
) -> Part:
    kinds = _kinds(values)
    part = Part(rows={kind: [] for kind in kinds if kind in ("bbox", "segm", "keypoints")})
    cities = cityscapes_metrics.Instances(examples.classes) if "cityscapes" in kinds else None
    if cities is not None:
        part.judges["mask "] = cities
    bodies = surface_metrics.Bodies.read(values.geodesic) if "surface" in kinds and values.geodesic else None
    if bodies is not None:
        part.judges["GPS "] = bodies.judged
    images = scaled(values.images)
    sizes = Sizes((images.test_short,), images.test_longest)
    chosen = replace(examples, examples=examples.examples[share])
    for place, (example, batch) in enumerate(
        evaluation_images(chosen, read_image, pixels, sizes, model.divisor), share.start
    ):
        found = model.detect(batch.to(device), [(example.height, example.width)])[0].cpu()
        for kind in part.rows:
            part.rows[kind] += coco_metrics.rows(examples, example, found, kind)  # type: ignore[arg-type]
        if "voc" in kinds:
            part.boxes.append(Detections(found.boxes, found.scores, found.labels))
        if cities is not None:
            cities.add(example, found)
        if bodies is not None:
            bodies.add(example, found)
        if place < pictures:
            part.shown.append((place, found))
    return part


def _table(values: TransferRecipe, examples: Examples, part: Part) -> dict[str, float]:
    """Percentages by name."""
    table = {}
    if "voc" in _kinds(values):
        table = voc_metrics.evaluate(examples, part.boxes, area=voc_metrics.area_of(values.test))
    for kind, rows in part.rows.items():
        name = {"bbox": "box", "segm": "mask", "keypoints": "keypoint"}[kind]
        measured = coco_metrics.evaluate(
            examples, rows, kind, lvis=values.layout == "lvis", most=values.heads.most  # type: ignore[arg-type]
        )  # fmt: skip
        table |= {f"{name} {metric}": value for metric, value in measured.items()}
    for name, judge in part.judges.items():
        table |= {f"{name}{metric}": value for metric, value in judge.result().items()}
    return table


def _kinds(values: TransferRecipe) -> set[str]:
    if values.layout in ("voc", "cityscapes"):
        return {values.layout}
    kinds = {"bbox"} | ({"segm"} if values.heads.masks else set())
    return kinds | {"keypoints": {"keypoints"}, "densepose": {"surface"}}.get(values.layout, set())
