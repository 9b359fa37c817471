"""What a fine-tuned network is worth on the test split of its task."""

from dataclasses import dataclass, field
from typing import Any

import torch

from moco.transfer import cityscapes_metrics, coco_metrics, surface_metrics, voc_metrics
from moco.transfer.detector import Detector
from moco.transfer.example import Detections, Example, Examples
from moco.transfer.loader import Pixels, evaluation_images
from moco.transfer.pixel_metrics import Confusion
from moco.transfer.segmentation import Segmenter
from moco.transfer.transforms import Sizes, label_image
from moco.transfer_build import read_image, scaled
from moco.transfer_recipe import TransferRecipe


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


def measure(
    values: TransferRecipe,
    model: Detector | Segmenter,
    examples: Examples,
    pixels: Pixels,
    device: torch.device,
    *,
    pictures: int = 8,
) -> Measured:
    """Run a network over a split, one image at a time, and compare with the annotations.

    Args:
        values: the recipe, which knows test sizes and the metric.
        model: in any mode; it is in evaluation mode afterwards.
        examples: the split.
        pixels: normalisation.
        device: where the model is.
        pictures: images to keep for looking at.

    Raises:
        RuntimeError: if an image cannot be read.
        ModuleNotFoundError: if COCO's metrics are needed and faster-coco-eval is not there.
    """
    model.eval()
    if isinstance(model, Segmenter):
        return _pixels(model, examples, pixels, device, pictures)
    return _objects(values, model, examples, pixels, device, pictures)


def _pixels(
    model: Segmenter,
    examples: Examples,
    pixels: Pixels,
    device: torch.device,
    pictures: int,
) -> Measured:
    confusion, measured = Confusion(examples.classes), Measured()
    for example, images in evaluation_images(examples, read_image, pixels, None):
        found = model.classes_of(images.to(device), [(example.height, example.width)])[0].cpu()
        confusion.add(label_image(str(example.semantic), examples.lookup), found)
        if len(measured.shown) < pictures:
            measured.shown.append((example, found))
    measured.table = confusion.result()
    return measured


def _objects(
    values: TransferRecipe,
    model: Detector,
    examples: Examples,
    pixels: Pixels,
    device: torch.device,
    pictures: int,
) -> Measured:
    kinds = _kinds(values)
    measured = Measured(rows={kind: [] for kind in kinds if kind in ("bbox", "segm", "keypoints")})
    all_found: list[Detections] = []
    cities = cityscapes_metrics.Instances(examples.classes) if "cityscapes" in kinds else None
    bodies = surface_metrics.Bodies.read(values.geodesic) if "surface" in kinds and values.geodesic else None
    images = scaled(values.images)
    sizes = Sizes((images.test_short,), images.test_longest)
    for example, batch in evaluation_images(examples, read_image, pixels, sizes, model.divisor):
        found = model.detect(batch.to(device), [(example.height, example.width)])[0]
        for kind in measured.rows:
            measured.rows[kind] += coco_metrics.rows(examples, example, found, kind)  # type: ignore[arg-type]
        if "voc" in kinds:
            all_found.append(found)
        if cities is not None:
            cities.add(example, found)
        if bodies is not None:
            bodies.add(example, found)
        if len(measured.shown) < pictures:
            measured.shown.append((example, found))
    if "voc" in kinds:
        measured.table |= voc_metrics.evaluate(examples, all_found)
    for kind, rows in measured.rows.items():
        name = {"bbox": "box", "segm": "mask", "keypoints": "keypoint"}[kind]
        table = coco_metrics.evaluate(
            examples, rows, kind, lvis=values.layout == "lvis", most=values.heads.most  # type: ignore[arg-type]
        )  # fmt: skip
        measured.table |= {f"{name} {metric}": value for metric, value in table.items()}
    if cities is not None:
        measured.table |= {f"mask {name}": value for name, value in cities.result().items()}
    if bodies is not None:
        measured.table |= {f"GPS {name}": value for name, value in bodies.result().items()}
    return measured


def _kinds(values: TransferRecipe) -> set[str]:
    if values.layout in ("voc", "cityscapes"):
        return {values.layout}
    kinds = {"bbox"} | ({"segm"} if values.heads.masks else set())
    return kinds | {"keypoints": {"keypoints"}, "densepose": {"surface"}}.get(values.layout, set())
