"""Segmentation's mIoU, Cityscapes's instances, and points on surfaces, against their definitions."""

import numpy as np
import pytest
import torch
from PIL import Image

from moco.transfer import cityscapes, coco, surface_metrics
from moco.transfer.cityscapes_metrics import Instances
from moco.transfer.densepose import Surface
from moco.transfer.example import Detections
from moco.transfer.pixel_metrics import Confusion
from moco.transfer.surface_metrics import Bodies, Body, similarity
from scenes import write_cityscapes, write_coco


def test_miou_equals_the_definition():
    rng = np.random.default_rng(0)
    truths = [torch.tensor(rng.integers(0, 4, (9, 11))) for _ in range(3)]
    found = [torch.where(torch.tensor(rng.random((9, 11)) < 0.6), t, 3 - t) for t in truths]
    truths[0][:2] = 255
    confusion = Confusion(["a", "b", "c", "d", "never"])
    for truth, one in zip(truths, found, strict=True):
        confusion.add(truth, one)
    table = confusion.result()
    ious = []
    for label in range(4):
        both = either = 0
        for truth, one in zip(truths, found, strict=True):
            for t, p in zip(truth.flatten().tolist(), one.flatten().tolist(), strict=True):
                if t != 255:
                    both += t == label and p == label
                    either += label in (t, p)
        ious.append(100 * both / either)
    assert table["mIoU"] == pytest.approx(np.mean(ious), abs=1e-9)
    assert "IoU/never" not in table
    again = Confusion(["a", "b", "c", "d"])
    again.add(truths[0], torch.where(truths[0] == 255, 0, truths[0]))
    assert again.result()["mIoU"] == 100
    with pytest.raises(ValueError, match="class numbers must be below 4 or 255, got 7"):
        again.add(torch.full((2, 2), 7), torch.zeros(2, 2, dtype=torch.long))


@pytest.mark.parametrize("void", [4, 255])
def test_cityscapes_perfect_is_100_shifted_is_less_and_void_does_not_count(tmp_path, void):
    root = write_cityscapes(tmp_path, {"val": 6})
    for path in root.rglob("*_instanceIds.png"):
        numbers = cityscapes.instance_numbers(path)
        Image.fromarray(np.where(numbers == 4, void, numbers).astype(np.uint16)).save(path)
    examples = cityscapes.instances(root, "val")

    def score(change):
        metric = Instances(examples.classes)
        for example in examples.examples:
            whole = torch.from_numpy(cityscapes.instance_numbers(example.instances))
            masks = torch.stack([whole == n for n in example.objects.shapes])
            metric.add(example, change(example, masks))
        return metric.result()

    def as_found(example, masks):
        return Detections(
            example.objects.boxes, torch.linspace(0.9, 0.8, len(masks)), example.objects.labels, masks
        )

    def with_void(example, masks):
        void = torch.zeros(1, example.height, example.width, dtype=torch.bool)
        void[0, :2] = True  # where the labels say static, or 255
        label = example.objects.labels[:1]
        return Detections(
            torch.cat([example.objects.boxes, torch.zeros(1, 4)]),
            torch.cat([torch.linspace(0.9, 0.8, len(masks)), torch.tensor([0.99])]),
            torch.cat([example.objects.labels, label]),
            torch.cat([masks, void]),
        )

    assert score(as_found)["AP"] == pytest.approx(100)
    assert score(with_void)["AP"] == pytest.approx(100)
    shifted = score(lambda example, masks: as_found(example, masks.roll(4, 2)))
    assert 0 < shifted["AP"] < 90
    assert score(lambda example, masks: as_found(example, torch.zeros_like(masks)))["AP"] == 0


@pytest.fixture(scope="module")
def body():
    """Every part a flat square of 0.4 m with 9 x 9 points; different parts a metre apart."""
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 9), np.linspace(0, 1, 9)), -1).reshape(-1, 2)
    parts = np.repeat(np.arange(1, 25), len(grid))
    uv = np.tile(grid, (24, 1))
    count = len(parts)
    high, low = np.tril_indices(count, -1)
    apart = 0.4 * np.linalg.norm(uv[high] - uv[low], axis=1)
    distances = np.where(parts[high] == parts[low], apart, 1.0)
    return Body(parts, uv[:, 0], uv[:, 1], np.arange(count), distances)


def test_distances_are_found_where_they_are(body):
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, len(body.parts), (2, 50))
    for a, b, found in zip(first, second, body.between(first, second), strict=True):
        same = body.parts[a] == body.parts[b]
        apart = 0.4 * np.hypot(body.u[a] - body.u[b], body.v[a] - body.v[b])
        assert found == pytest.approx(apart if same else 1.0)
    assert body.between(np.array([3, -1]), np.array([3, 5])).tolist() == [0.0, np.inf]


def painted(example, number, part_shift=0, uv_shift=0.0):
    """A surface that gives each annotated point its own part, U and V."""
    left, top, right, bottom = (int(v) for v in example.objects.boxes[number])
    height, width = bottom - top, right - left
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    part = int(example.objects.surfaces[number]["dp_I"][0])
    parts = torch.full((height, width), (part - 1 + part_shift) % 24 + 1)
    uv = torch.tensor(np.stack([x + uv_shift, y])).clamp(0, 1)
    return Surface(left, top, parts, uv)


def surfaces_found(example, **changes):
    objects = example.objects
    surfaces = tuple(painted(example, n, **changes) for n in range(len(objects)))
    return Detections(objects.boxes, torch.ones(len(objects)), objects.labels, surfaces=surfaces)


def test_surface_precision(tmp_path, body):
    pytest.importorskip("faster_coco_eval")
    root = write_coco(tmp_path, {"minival": 6}, "densepose", folders={"minival": "val2014"})
    examples = coco.read(root / "annotations/densepose_coco_2014_minival.json", root / "val2014")

    def score(**changes):
        metric = Bodies(body)
        for example in examples.examples:
            metric.add(example, surfaces_found(example, **changes))
        return metric.judged.result()

    assert score()["AP"] == pytest.approx(100)
    assert score(part_shift=1)["AP"] == 0
    shifted = score(uv_shift=0.5)
    assert 0 <= shifted["AP"] < 90


def test_similarity_is_the_mean_over_points(tmp_path, body):
    root = write_coco(tmp_path, {"minival": 2}, "densepose", folders={"minival": "val2014"})
    example = coco.read(root / "annotations/densepose_coco_2014_minival.json", root / "val2014").examples[0]
    box = example.objects.boxes[0].numpy()
    found = painted(example, 0, uv_shift=0.25)
    value = similarity(body, example.objects.surfaces[0], box, found)
    expected = []
    surface = example.objects.surfaces[0]
    for x, y, u, v in zip(*(surface[f"dp_{n}"] for n in "xyUV"), strict=True):
        column, row = int(x / 256 * found.parts.shape[1]), int(y / 256 * found.parts.shape[0])
        own = np.round(np.array([u, v]) * 8) / 8  # the nearest of 9 x 9 points
        there = np.round(found.uv[:, row, column].numpy() * 8) / 8
        expected.append(np.exp(-((0.4 * np.linalg.norm(own - there)) ** 2) / (2 * 0.351**2)))
    assert value == pytest.approx(np.mean(expected), abs=1e-6)
    assert surface_metrics._NORMAL_DISTANCE[1] == 0.351
