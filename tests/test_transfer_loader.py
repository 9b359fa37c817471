"""Transforms, order and batches of transfer; points on surfaces."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from moco.transfer import coco, voc
from moco.transfer.batch import ImageList
from moco.transfer.loader import Pixels, detection_loader, segmentation_loader
from moco.transfer.order import Order, repeat_factors
from moco.transfer.surface import Symmetry, read_points
from moco.transfer.transforms import Sizes, Wanted, for_detection, for_segmentation
from moco.transfer_build import read_image as decode
from moco.world import Solo
from scenes import surface, write_coco

PIXELS = Pixels((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
CPU = torch.device("cpu")


def test_resizing_and_mirroring_move_everything_together(tmp_path):
    pytest.importorskip("faster_coco_eval")
    root = write_coco(tmp_path, {"train": 2}, "keypoints")
    examples = coco.coco(root, "train", kind="person_keypoints")
    example = examples.examples[1]
    image = decode(example.path)
    wanted = Wanted(masks=True, keypoints=True)
    results = []
    for mirror in (0.9, 0.1):
        picture, target = for_detection(
            image, example, examples, Sizes((128,), 1000), wanted, [0.5, mirror, 0, 0]
        )
        assert picture.shape[1:] == (128, 192)
        for box, mask in zip(target.boxes, target.masks, strict=True):
            rows, columns = mask.nonzero().unbind(1)
            extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            torch.testing.assert_close(torch.stack(extent).float(), box, atol=1.0, rtol=0)
        results.append((picture, target))
    (plain, target), (mirrored, other) = results
    assert torch.equal(plain.flip(-1), mirrored)
    torch.testing.assert_close(192 - other.boxes[:, [2, 0]], target.boxes[:, [0, 2]])
    left, right = 1, 2  # eyes
    torch.testing.assert_close(192 - other.keypoints[:, left, 0], target.keypoints[:, right, 0])
    torch.testing.assert_close(192 - other.keypoints[:, 0, 0], target.keypoints[:, 0, 0])
    torch.testing.assert_close(target.keypoints[:, 0, :2], 2 * example.objects.keypoints[:, 0, :2])


def test_boxes_outside_and_without_area_are_cut_or_dropped(tmp_path):
    path = write_coco(tmp_path, {"train": 2}) / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    image = content["images"][0]["id"]
    for number, box in enumerate([[-10, 5, 30, 20], [500, 500, 20, 20], [5, 5, 0, 9]]):
        content["annotations"].append(content["annotations"][0] | {"id": 90 + number, "bbox": box})
        content["annotations"][-1]["image_id"] = image
    path.write_text(json.dumps(content))
    examples = coco.coco(tmp_path, "train")
    example = examples.examples[0]
    assert len(example.objects) == 4
    _, target = for_detection(
        decode(example.path), example, examples, Sizes((64,), 1000), Wanted(), [0.5, 0.9, 0, 0]
    )
    assert target.boxes.tolist()[1] == [0, 5, 20, 25]
    assert len(target.boxes) == len(target.labels) == 2


def test_the_short_side_is_drawn_and_the_long_side_limited():
    sizes = Sizes((480, 512, 800), 1333)
    assert sizes.of(500, 1000, 0.1) == (480, 960)
    assert sizes.of(500, 1000, 0.9) == (667, 1333)
    assert sizes.of(1000, 500, 0.5) == (1024, 512)


def test_crops_for_segmentation_keep_pixels_and_labels_together():
    rows = torch.arange(40).float()[None, :, None].expand(3, 40, 30)
    labels = torch.arange(40)[:, None].expand(40, 30).to(torch.uint8)
    for draw in ([0.4999, 0.9, 0.6, 0.2], [0.0, 0.1, 0.5, 0.5], [0.99, 0.9, 0.9, 0.1]):
        picture, truth = for_segmentation(rows, labels, 33, (0.5, 1.5), draw)
        assert picture.shape == (3, 33, 33)
        seen = truth != 255
        assert (picture[0][seen] - truth[seen].float()).abs().max() < 1.5
        assert bool((picture[:, ~seen] == 0).all())
    assert int(seen.sum()) == 33 * 33


def test_batches_are_all_wide_or_all_tall_and_take_every_image():
    wide = [n % 3 == 0 for n in range(60)]
    order = Order(wide, 4, seed=5)
    steps = 15
    batches = [order.index(step) for step in range(steps)]
    assert sorted(np.concatenate(batches).tolist()) == list(range(60))
    assert all(len({wide[i] for i in batch}) == 1 for batch in batches)
    again = Order(wide, 4, seed=5)
    assert [again.index(step).tolist() for step in (20, 3)] == [order.index(20).tolist(), batches[3].tolist()]
    assert order.index(15).tolist() != batches[0].tolist()
    with pytest.raises(ValueError, match=r"there are 3 images, fewer than a batch of 4"):
        Order(wide[:3], 4, seed=0)


def test_rare_classes_are_repeated_as_often_as_defined(tmp_path):
    examples = coco.coco(write_coco(tmp_path, {"train": 30}), "train")
    factors = repeat_factors(examples, 0.9)
    share = [0.0] * 3
    for example in examples.examples:
        for label in set(example.objects.labels.tolist()):
            share[label] += 1 / 30
    for factor, example in zip(factors, examples.examples, strict=True):
        own = [max(1, math.sqrt(0.9 / share[label])) for label in set(example.objects.labels.tolist())]
        assert factor == pytest.approx(max(own))
    order = Order([True] * 30, 1, seed=0, repeats=np.linspace(1, 3, 30))
    seen = np.bincount([int(order.index(step)[0]) for step in range(60 * 40)], minlength=30)
    np.testing.assert_allclose(seen / seen.sum(), np.linspace(1, 3, 30) / 60, atol=0.006)


def loader(examples, world=None, workers=2):
    order = Order([e.width > e.height for e in examples.examples], 4, 0)
    return detection_loader(
        examples, order, decode, PIXELS, Sizes((48, 64), 200), Wanted(), divisor=32,
        seed=0, world=world or Solo(), device=CPU, workers=workers,
    )  # fmt: skip


def test_a_batch_depends_on_its_step_alone(voc_root):
    examples = voc.detection(voc_root, ("VOC2007:train",))
    streamed = list(loader(examples, workers=3).stream(0, 4))
    alone = loader(examples, workers=1).batch(3)
    assert torch.equal(streamed[3].images.pixels, alone.images.pixels)
    assert streamed[3].seeds == alone.seeds
    assert len({batch.seeds for batch in streamed}) == 4
    assert all(side % 32 == 0 for side in alone.images.pixels.shape[2:])
    for one, other in zip(streamed[3].targets, alone.targets, strict=True):
        assert torch.equal(one.boxes, other.boxes)


def test_processes_share_a_batch(voc_root):
    class Half(Solo):
        def __init__(self, rank):
            self.place = rank

        @property
        def rank(self):
            return self.place

        @property
        def size(self):
            return 2

    examples = voc.detection(voc_root, ("VOC2007:train",))
    whole = loader(examples).batch(1)
    parts = [loader(examples, Half(rank)).batch(1) for rank in (0, 1)]
    assert parts[0].seeds + parts[1].seeds == whole.seeds
    assert torch.equal(parts[1].targets[1].boxes, whole.targets[3].boxes)

    class Three(Half):
        @property
        def size(self):
            return 3

    with pytest.raises(ValueError, match=r"a batch of 4 images cannot be shared by 3 processes"):
        loader(examples, Three(0))


def test_images_of_another_size_than_annotated_end_the_run(voc_root):
    examples = voc.detection(voc_root, ("VOC2007:train",))
    Image.new("RGB", (10, 10)).save(examples.examples[0].path)
    with pytest.raises(RuntimeError, match=r"train000.jpg is 10 x 10 pixels, its annotation says 64 x 96"):
        list(loader(examples).stream(0, 2))


def test_segmentation_batches(voc_root):
    examples = voc.segmentation(voc_root, "VOC2007:train")
    order = Order([True] * 8, 4, 0)
    batches = segmentation_loader(
        examples, order, decode, PIXELS, 33, (0.5, 2.0), seed=0, world=Solo(), device=CPU
    )
    batch = batches.batch(0)
    assert batch.images.pixels.shape == (4, 3, 33, 33)
    assert batch.labels.shape == (4, 33, 33)
    assert set(batch.labels.unique().tolist()) <= {0, 8, 12, 15, 255}
    rgb = Image.new("RGB", (64, 96))
    rgb.save(examples.examples[0].semantic)
    with pytest.raises(ValueError, match=r"must hold one class number per pixel, it has mode RGB"):
        list(batches.stream(0, 2))


def test_images_are_padded_at_the_right_and_below():
    images = ImageList.stack([torch.ones(3, 5, 9), torch.ones(3, 7, 4)], divisor=4)
    assert images.pixels.shape == (2, 3, 8, 12)
    assert images.sizes == ((5, 9), (7, 4))
    assert [int(row.sum()) for row in images.pixels] == [3 * 45, 3 * 28]


def test_surface_points_and_their_mirror(tmp_path):
    pytest.importorskip("faster_coco_eval")
    points = read_points(surface(2))
    assert points.parts.tolist() == [3] * 9
    torch.testing.assert_close(points.places[0], torch.tensor([40 / 256, 40 / 256]))
    assert int(points.inside.sum()) == 256 * 256
    assert read_points(None) is None
    tables = torch.zeros(2, 24, 256, 256)
    tables[0, 2] = 0.25
    tables[1, 2, 40, :] = 0.75
    mirrored = Symmetry(tables).mirrored(points)
    assert mirrored.parts.tolist() == [4] * 9
    torch.testing.assert_close(mirrored.places[:, 0], 1 - points.places[:, 0])
    assert mirrored.uv[:, 0].tolist() == [0.25] * 9
    with pytest.raises(
        FileNotFoundError, match=r"UV_symmetry_transforms.mat; it belongs to the DensePose data"
    ):
        Symmetry.read(tmp_path / "UV_symmetry_transforms.mat")
    scipy_io = pytest.importorskip("scipy.io")
    content = {}
    for axis, table in zip("UV", tables.numpy(), strict=True):
        cell = np.empty((1, 24), dtype=object)
        for part in range(24):
            cell[0, part] = table[part]
        content[f"{axis}_transforms"] = cell
    scipy_io.savemat(tmp_path / "UV_symmetry_transforms.mat", content)
    assert torch.equal(Symmetry.read(tmp_path / "UV_symmetry_transforms.mat").tables, tables)
