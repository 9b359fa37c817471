"""Made-up scenes of coloured rectangles, written in the layouts of real data sets."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from moco.transfer.example import Detections

SIDE = 64
COLOURS = {"cat": (220, 60, 40), "dog": (40, 90, 220), "person": (60, 200, 80)}
CITY_IDS = {"cat": 26, "dog": 27, "person": 24}  # car, truck, person


def scenes(count: int, seed: int = 0, side: int = SIDE):
    """(pixels, [(name, left, top, right, bottom)]) of each scene, one or two rectangles that do not touch."""
    rng = np.random.default_rng(seed)
    names = list(COLOURS)
    result = []
    for number in range(count):
        height, width = (side, side * 3 // 2) if number % 2 else (side * 3 // 2, side)
        pixels = rng.integers(90, 130, (height, width, 3), dtype=np.uint8)
        things = []
        for half in range(1 + number % 2):
            name = names[(number + half) % len(names)]
            left = int(rng.integers(2, width // 2 - 22)) + half * (width // 2)
            top = int(rng.integers(2, height - 40))
            right, bottom = left + int(rng.integers(14, 20)), top + int(rng.integers(18, 36))
            pixels[top:bottom, left:right] = COLOURS[name]
            things.append((name, left, top, right, bottom))
        result.append((pixels, things))
    return result


def write_voc(root: Path, splits: dict[str, int], year: str = "VOC2007") -> Path:
    """Boxes and class masks; the second object of every fourth image is difficult."""
    home = root / "VOCdevkit" / year
    for folder in (
        "JPEGImages",
        "Annotations",
        "ImageSets/Main",
        "ImageSets/Segmentation",
        "SegmentationClass",
    ):
        (home / folder).mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate(splits.items()):
        ids = []
        for number, (pixels, things) in enumerate(scenes(count, seed)):
            ids.append(f"{split}{number:03d}")
            Image.fromarray(pixels).save(home / "JPEGImages" / f"{ids[-1]}.jpg", quality=95)
            mask = np.zeros(pixels.shape[:2], dtype=np.uint8)
            objects = ""
            for place, (name, left, top, right, bottom) in enumerate(things):
                mask[top:bottom, left:right] = 8 if name == "cat" else 12 if name == "dog" else 15
                difficult = int(place == 1 and number % 4 == 3)
                box = (
                    f"<xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
                )
                objects += (
                    f"<object><name>{name}</name><difficult>{difficult}</difficult>"
                    f"<bndbox>{box}</bndbox></object>"
                )
            mask[0] = 255
            image = Image.fromarray(mask)
            image.putpalette([0] * 768)
            image.save(home / "SegmentationClass" / f"{ids[-1]}.png")
            height, width = mask.shape
            (home / "Annotations" / f"{ids[-1]}.xml").write_text(
                f"<annotation><size><width>{width}</width><height>{height}</height></size>{objects}</annotation>"
            )
        for kind in ("Main", "Segmentation"):
            (home / "ImageSets" / kind / f"{split}.txt").write_text("\n".join(ids) + "\n")
    return root


SIDED = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
JOINTS = ["nose", *(f"{side}_{name}" for name in SIDED for side in ("left", "right"))]


def surface(index: int) -> dict:
    """Nine annotated points on one part."""
    grid = np.stack(np.meshgrid([40, 128, 210], [40, 128, 210]), -1).reshape(-1, 2)
    everything = {"size": [256, 256], "counts": [0, 256 * 256]}
    return {
        "dp_x": grid[:, 0].tolist(),
        "dp_y": grid[:, 1].tolist(),
        "dp_I": [float(1 + index % 24)] * 9,
        "dp_U": (grid[:, 0] / 256).tolist(),
        "dp_V": (grid[:, 1] / 256).tolist(),
        "dp_masks": [everything] + [[]] * 13,
    }


def write_coco(root: Path, splits: dict[str, int], kind: str = "instances", **extra) -> Path:
    """Annotations in COCO's form; `kind` as in the names of COCO's files, or "lvis"."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    person = {"keypoints": "person_keypoints", "densepose": "densepose_coco_2014"}.get(kind)
    names = ["person"] if person else list(COLOURS)
    for seed, (split, count) in enumerate(splits.items()):
        folder = extra.get("folders", {}).get(split, split)
        (root / folder).mkdir(exist_ok=True)
        images, annotations = [], []
        for number, (pixels, things) in enumerate(scenes(count, seed)):
            name = f"{number + 1:012d}.jpg"
            Image.fromarray(pixels).save(root / folder / name, quality=95)
            height, width = pixels.shape[:2]
            images.append({"id": number + 1, "file_name": name, "height": height, "width": width})
            if kind == "lvis":
                images[-1] |= {"not_exhaustive_category_ids": [], "neg_category_ids": [10, 20, 30]}
            for thing, left, top, right, bottom in things:
                label = "person" if person else thing
                shape = [[left, top, right, top, right, bottom, left, bottom]]
                middle = (left + right) // 2
                annotation = {
                    "id": len(annotations) + 1, "image_id": number + 1,
                    "category_id": 1 if person else 10 * (1 + names.index(label)),
                    "bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top),
                    "segmentation": shape,
                }  # fmt: skip
                if kind != "lvis":
                    annotation["iscrowd"] = 0
                if kind == "keypoints":
                    joints = [middle, top + 1, 2]
                    for row in range(len(SIDED)):
                        y = top + 2 + row * (bottom - top - 4) // len(SIDED)
                        joints += [right - 2, y, 2, left + 2, y, row % 3]
                    annotation |= {"keypoints": joints, "num_keypoints": sum(v > 0 for v in joints[2::3])}
                if kind == "densepose":
                    annotation |= surface(number)
                annotations.append(annotation)
        if kind == "keypoints":
            categories = [{"id": 1, "name": "person", "keypoints": JOINTS}]
        elif person:
            categories = [{"id": 1, "name": "person"}]
        else:
            frequency = dict(zip(names, "rcf", strict=True))
            categories = [
                {"id": 10 * (1 + i), "name": name, "frequency": frequency[name]}
                for i, name in enumerate(names)
            ]
        content = {"images": images, "annotations": annotations, "categories": categories}
        prefix = person or kind
        (root / "annotations" / f"{prefix}_{split}.json").write_text(json.dumps(content))
    return root


def write_cityscapes(root: Path, splits: dict[str, int]) -> Path:
    """Images, label ids and 16-bit instance ids of one city."""
    for seed, (split, count) in enumerate(splits.items()):
        places = [root / top / split / "town" for top in ("leftImg8bit", "gtFine")]
        for place in places:
            place.mkdir(parents=True)
        for number, (pixels, things) in enumerate(scenes(count, seed)):
            stem = f"town_{number:06d}_000019"
            labels = np.full(pixels.shape[:2], 7, dtype=np.uint8)
            labels[:2] = 4  # static, void
            instances = labels.astype(np.uint16)
            counts: dict[int, int] = {}
            for name, left, top, right, bottom in things:
                label = CITY_IDS[name]
                labels[top:bottom, left:right] = label
                instances[top:bottom, left:right] = 1000 * label + counts.get(label, 0)
                counts[label] = counts.get(label, 0) + 1
            Image.fromarray(pixels).save(places[0] / f"{stem}_leftImg8bit.png")
            Image.fromarray(labels).save(places[1] / f"{stem}_gtFine_labelIds.png")
            Image.fromarray(instances).save(places[1] / f"{stem}_gtFine_instanceIds.png")
    return root


def perfect(example, shift=0.0, masks=None, keypoints=None):
    """The annotations as detections, moved to the right."""
    objects = example.objects
    move = torch.tensor([shift, 0, shift, 0])
    return Detections(objects.boxes + move, torch.ones(len(objects)), objects.labels, masks, keypoints)


def noisy(example, classes, seed, count=12):
    """Some annotations moved about, some random boxes, random scores and now and then another class."""
    rng = np.random.default_rng(seed)
    boxes = example.objects.boxes.numpy()
    rows = []
    for _ in range(count):
        if len(boxes) and rng.random() < 0.7:
            box = boxes[rng.integers(len(boxes))]
            rows.append(box + rng.normal(0, 3, 4).astype(np.float32) * rng.random())
        else:
            corner = rng.random(2) * [example.width * 0.6, example.height * 0.6]
            rows.append([*corner, *(corner + 4 + rng.random(2) * 30)])
    found = torch.tensor(np.array(rows, dtype=np.float32))
    found[:, 2:] = torch.maximum(found[:, 2:], found[:, :2] + 1)
    own = example.objects.labels
    labels = [
        int(own[rng.integers(len(own))]) if len(own) and rng.random() < 0.8 else int(rng.integers(classes))
        for _ in range(count)
    ]
    scores = torch.tensor(rng.random(count).astype(np.float32)).sort(descending=True).values
    return Detections(found, scores, torch.tensor(labels))
